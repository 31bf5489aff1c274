// Paged attention: prefill chunks and decodes mixed, by online softmax (FlashAttention, arXiv 2205.14135) in float32.
//
// A unit of work is a tile of queries of one sequence; a part of it is the heads that share one K/V head, and its rows are
// (query, head) pairs. Few rows (decodes): dot products straight from the cache. Many: a tile of keys is turned into a
// panel once, and the matrix kernel of gemm.h takes the rows by it.
//
// Keys go by outside, parts inside, so that the cache is read in the order in which it lies in memory, and each part looks
// ahead in the next tile of keys a whole round ahead: decodes wait for memory and for nothing else.
#pragma once
#include <vector>

#include "gemm.h"
#include "rows.h"

namespace llmrun {

constexpr int KEYS = 64;      // keys of a tile
constexpr int MOST_ROWS = 48;   // rows of a part
constexpr int STATE_ROWS = 96;  // rows of the parts that a thread has in hand at once
constexpr int FEW_ROWS = 4;

struct Attend {
    const void* q;  // [tokens, heads, dim] of q_type, tokens q_stride elements apart
    void* out;      // the same shape of out_type, out_stride
    int64_t q_stride, out_stride;
    const float* slopes;  // [heads] or null
    float scale, softcap; // softcap 0: none
    int32_t q_type, out_type, heads, window;  // window 0: none
};
struct Sequences {
    const int32_t *query_starts, *context_lens, *block_tables;
    int32_t count, width;
};
struct Unit {
    int32_t sequence, first, queries;  // first: of the sequence's queries in this step
};

// Tiles of all sequences, longest first so that no thread is left with a long one at the end.
inline std::vector<Unit> make_units(const Sequences& s, int heads, int kv_heads) {
    const int shared = std::min(MOST_ROWS, heads / kv_heads);
    const int tile = std::max(1, MOST_ROWS / shared);
    std::vector<Unit> units;
    for (int i = 0; i < s.count; i++) {
        const int queries = s.query_starts[i + 1] - s.query_starts[i];
        for (int first = 0; first < queries; first += tile) units.push_back({i, first, std::min(tile, queries - first)});
    }
    std::stable_sort(units.begin(), units.end(), [&](const Unit& a, const Unit& b) {
        return (int64_t)s.context_lens[a.sequence] * a.queries > (int64_t)s.context_lens[b.sequence] * b.queries;
    });
    return units;
}

class Tile {
   public:
    Tile(const Attend& call, const Cache& cache, const Sequences& sequences)
        : call_(call), cache_(cache), sequences_(sequences), dim_(cache.dim), padded_(round_up(cache.dim, NR)),
          shared_(call.heads / cache.kv_heads), groups_((shared_ + MOST_ROWS - 1) / MOST_ROWS) {
        buffer_.resize((size_t)padded_ * (2 * STATE_ROWS + 2 * KEYS) + MOST_ROWS * KEYS);
        all_q_ = buffer_.data();
        all_out_ = all_q_ + STATE_ROWS * padded_;
        keys_ = all_out_ + STATE_ROWS * padded_;
        values_ = keys_ + KEYS * padded_;
        scores_ = values_ + KEYS * padded_;
    }

    // Parts first .. last of a unit; there are kv_heads * groups() of them.
    void run(const Unit& unit, int first, int last) {
        const int i = unit.sequence;
        queries_begin_ = sequences_.query_starts[i] + unit.first;
        const int query_len = sequences_.query_starts[i + 1] - sequences_.query_starts[i];
        position_ = sequences_.context_lens[i] - query_len + unit.first;
        blocks_ = sequences_.block_tables + (int64_t)i * sequences_.width;
        queries_ = unit.queries;
        const int at_once = std::max(1, STATE_ROWS / (queries_ * std::min(shared_, MOST_ROWS)));
        for (; first < last; first += at_once) run_parts(first, std::min(last, first + at_once));
    }
    int groups() const { return groups_; }

   private:
    void run_parts(int first, int last) {
        const int end = position_ + queries_;
        const int begin = call_.window > 0 ? std::max(0, position_ - call_.window + 1) : 0;
        find_slots(begin, std::min(KEYS, end - begin));
        const int first_kv = first / groups_, last_kv = (last - 1) / groups_ + 1;
        touch_ahead(0, 1, first_kv, last_kv, std::min(KEYS, end - begin));
        for (int part = first; part < last; part++) {
            select(part, first);
            read_queries();
        }
        for (int key = begin; key < end; key += KEYS) {
            const int count = std::min(KEYS, end - key);
            const int next = std::clamp(end - key - KEYS, 0, KEYS);
            std::swap(slots_, next_slots_);
            find_slots(key + KEYS, next);
            for (int part = first; part < last; part++) {
                select(part, first);
                touch_ahead(part - first, last - first, first_kv, last_kv, next);
                score(count);
                for (int r = 0; r < rows_; r++) soften(r, key, count);
                add_values(count);
            }
        }
        for (int part = first; part < last; part++) {
            select(part, first);
            write_out();
        }
    }
    void select(int part, int first) {
        const int group = part % groups_ * MOST_ROWS;
        kv_head_ = part / groups_;
        first_head_ = kv_head_ * shared_ + group;
        heads_ = std::min(MOST_ROWS, shared_ - group);
        rows_ = queries_ * heads_;
        const int row = (part - first) * queries_ * std::min(shared_, MOST_ROWS);
        q_ = all_q_ + (int64_t)row * padded_;
        out_ = all_out_ + (int64_t)row * padded_;
        largest_ = all_largest_ + row;
        total_ = all_total_ + row;
    }

    // Slots of the next tile's keys: divisions once a tile, not once a key.
    void find_slots(int key, int count) {
        const int size = cache_.block_size;
        int block = key / size, offset = key % size;
        for (int j = 0; j < count; j++) {
            next_slots_[j] = (int64_t)blocks_[block] * size + offset;
            if (++offset == size) {
                offset = 0;
                block++;
            }
        }
    }
    // Reads one of `shares` of the next tile, all heads in hand row by row. In memory order, and with loads: these wake the
    // processor's own prefetcher, prefetch instructions do not (measured, 32 x 256 keys in bfloat16: 31 ns a key and head;
    // 47 with prefetch instructions, and without anything).
    void touch_ahead(int share, int shares, int first_kv, int last_kv, int count) const {
        const int bytes = (last_kv - first_kv) * dim_ * type_size(cache_.type);
        for (const void* store : {cache_.k, cache_.v})
            for (int j = count * share / shares; j < count * (share + 1) / shares; j++) {
                const char* row = cache_.row(store, next_slots_[j], first_kv);
                for (int at = 0; at < bytes; at += 64) (void)*(const volatile char*)(row + at);
            }
    }
    void read(const void* store, const float* scales, int j, float* to) const {
        const int64_t at = slots_[j];
        read_row(cache_.row(store, at, kv_head_), cache_.type, scales ? scales[at * cache_.kv_heads + kv_head_] : 1.0f, to,
                 dim_);
    }

    void read_queries() {
        for (int r = 0; r < rows_; r++) {
            float* row = q_ + (int64_t)r * padded_;
            const int64_t at = (queries_begin_ + r / heads_) * call_.q_stride + (int64_t)(first_head_ + r % heads_) * dim_;
            read_row((const char*)call_.q + at * type_size(call_.q_type), call_.q_type, 1.0f, row, dim_);
            for (int d = 0; d < dim_; d++) row[d] *= call_.scale;
            std::fill(row + dim_, row + padded_, 0.0f);
            std::fill_n(out_ + (int64_t)r * padded_, padded_, 0.0f);
            largest_[r] = -INFINITY;
            total_[r] = 0;
        }
    }

    // Whether few rows can be computed from the cache as it lies there.
    bool is_direct() const { return rows_ <= FEW_ROWS && cache_.type <= BF16 && dim_ % W == 0; }

    template <class T, int R>
    void score_direct(int count) {
        for (int j = 0; j < count; j += 4) {  // KEYS is a multiple of 4; what is scored past the end is masked
            const T* keys[4];
            for (int i = 0; i < 4; i++)
                keys[i] = (const T*)cache_.row(cache_.k, slots_[std::min(j + i, count - 1)], kv_head_);
            vf s[R][4] = {};
            for (int d = 0; d < dim_; d += W)
                for (int i = 0; i < 4; i++) {
                    const vf k = load_as(keys[i] + d);
                    for (int r = 0; r < R; r++) s[r][i] += load(q_ + r * padded_ + d) * k;
                }
            for (int r = 0; r < R; r++) sum4(s[r], scores_ + r * KEYS + j);
        }
    }
    template <class T, int R>
    void add_direct(int count) {
        constexpr int D = 4;  // vectors of the output that stay in registers
        for (int d = 0; d < dim_; d += D * W) {
            const int vectors = std::min(D, (dim_ - d) / W);
            vf s[R][D] = {};
            for (int j = 0; j < count; j++) {
                const T* value = (const T*)cache_.row(cache_.v, slots_[j], kv_head_) + d;
                if (vectors == D) {
                    for (int i = 0; i < D; i++) {
                        const vf v = load_as(value + i * W);
                        for (int r = 0; r < R; r++) s[r][i] += splat(scores_[r * KEYS + j]) * v;
                    }
                } else {
                    for (int i = 0; i < vectors; i++)
                        for (int r = 0; r < R; r++) s[r][i] += splat(scores_[r * KEYS + j]) * load_as(value + i * W);
                }
            }
            for (int r = 0; r < R; r++)
                for (int i = 0; i < vectors; i++) {
                    float* out = out_ + r * padded_ + d + i * W;
                    store(out, load(out) + s[r][i]);
                }
        }
    }
    template <class T>
    void direct(bool is_score, int count) {
        switch (rows_) {
            case 1: return is_score ? score_direct<T, 1>(count) : add_direct<T, 1>(count);
            case 2: return is_score ? score_direct<T, 2>(count) : add_direct<T, 2>(count);
            case 3: return is_score ? score_direct<T, 3>(count) : add_direct<T, 3>(count);
            default: return is_score ? score_direct<T, 4>(count) : add_direct<T, 4>(count);
        }
    }

    void score(int count) {
        if (is_direct()) return cache_.type == F32 ? direct<float>(true, count) : direct<bf16>(true, count);
        for (int j = 0; j < count; j++) {
            read(cache_.k, cache_.k_scale, j, values_ + (int64_t)j * padded_);
        }
        const int lanes = round_up(count, NR);
        for (int j = count; j < lanes; j++) std::fill_n(values_ + (int64_t)j * padded_, dim_, 0.0f);
        for (int j = 0; j < lanes; j += W)
            for (int d = 0; d < dim_; d += W)
                transpose(values_ + (int64_t)j * padded_ + d, padded_, keys_ + (int64_t)(j / NR) * padded_ * NR + d * NR + j % NR,
                          NR);
        AskNothing none;
        for (int j = 0; j < count; j += NR)
            f32_panel<false>(rows_, q_, padded_, keys_ + (int64_t)j * padded_, NR, dim_, scores_ + j, KEYS, none);
    }

    // Scores of one row -> exp(score - largest), and what was summed before is scaled to the new largest.
    void soften(int r, int key, int count) {
        float* s = scores_ + r * KEYS;
        const int position = position_ + r / heads_;
        if (call_.softcap > 0)
            for (int j = 0; j < count; j += W) store(s + j, call_.softcap * vtanh(load(s + j) / call_.softcap));
        if (call_.slopes) {
            const float slope = call_.slopes[first_head_ + r % heads_];
            for (int j = 0; j < count; j++) s[j] += slope * (key + j - position);
        }
        for (int j = std::max(0, position + 1 - key); j < count; j++) s[j] = -INFINITY;
        if (call_.window > 0)
            for (int j = 0; j < std::min(count, position - call_.window + 1 - key); j++) s[j] = -INFINITY;
        for (int j = count; j % W; j++) s[j] = -INFINITY;
        vf top = load(s);
        for (int j = W; j < count; j += W) top = max(load(s + j), top);
        const float largest = std::max(largest_[r], max_of(top));
        if (largest == -INFINITY) {  // every key is outside the window
            std::fill_n(s, count, 0.0f);
            return;
        }
        vf sum_of = {};
        for (int j = 0; j < count; j += W) {
            const vf e = vexp(load(s + j) - largest);
            store(s + j, e);
            sum_of += e;
        }
        if (largest != largest_[r]) {
            const float factor = largest_[r] == -INFINITY ? 0.0f : std::exp(largest_[r] - largest);
            float* out = out_ + (int64_t)r * padded_;
            for (int d = 0; d < padded_; d++) out[d] *= factor;
            total_[r] *= factor;
            largest_[r] = largest;
        }
        total_[r] += sum(sum_of);
    }

    void add_values(int count) {
        if (is_direct()) return cache_.type == F32 ? direct<float>(false, count) : direct<bf16>(false, count);
        for (int j = 0; j < count; j++) {
            read(cache_.v, cache_.v_scale, j, values_ + (int64_t)j * padded_);
        }
        if (dim_ != padded_)
            for (int j = 0; j < count; j++) std::fill_n(values_ + (int64_t)j * padded_ + dim_, padded_ - dim_, 0.0f);
        AskNothing none;
        for (int d = 0; d < padded_; d += NR)
            f32_panel<true>(rows_, scores_, KEYS, values_ + d, padded_, count, out_ + d, padded_, none);
    }

    void write_out() {
        for (int r = 0; r < rows_; r++) {
            float* row = out_ + (int64_t)r * padded_;
            const float factor = 1.0f / total_[r];
            for (int d = 0; d < dim_; d++) row[d] *= factor;
            const int64_t at = (queries_begin_ + r / heads_) * call_.out_stride + (int64_t)(first_head_ + r % heads_) * dim_;
            write_row((char*)call_.out + at * type_size(call_.out_type), call_.out_type, row, dim_);
        }
    }

    const Attend& call_;
    const Cache& cache_;
    const Sequences& sequences_;
    const int dim_, padded_, shared_, groups_;
    // of the unit
    const int32_t* blocks_ = nullptr;
    int64_t queries_begin_ = 0;
    int position_ = 0, queries_ = 0;
    int64_t both_slots_[2][KEYS], *slots_ = both_slots_[0], *next_slots_ = both_slots_[1];
    float all_largest_[STATE_ROWS], all_total_[STATE_ROWS], *all_q_, *all_out_;
    // of the part
    int kv_head_ = 0, first_head_ = 0, heads_ = 0, rows_ = 0;
    float *q_ = nullptr, *out_ = nullptr, *largest_ = nullptr, *total_ = nullptr;
    float *keys_, *values_, *scores_;
    static thread_local std::vector<float> buffer_;
};
inline thread_local std::vector<float> Tile::buffer_;

inline void attend(Pool& pool, const Attend& call, const Cache& cache, const Sequences& sequences,
                   const std::vector<Unit>& units) {
    const int parts = cache.kv_heads * Tile(call, cache, sequences).groups();
    // All heads of a sequence by one thread, in memory order, where there are sequences enough for all threads.
    const int chunks = (int)units.size() >= 4 * pool.active() || pool.active() == 1 ? 1 : parts;
    pool.run((int)units.size() * chunks, [&](int chunk, int) {
        const int at = chunk % chunks;
        Tile(call, cache, sequences).run(units[chunk / chunks], parts * at / chunks, parts * (at + 1) / chunks);
    });
}

}  // namespace llmrun

// Pool: threads that share out the chunks of one loop after another. The caller works too.
//
// A loop ends when all of its chunks are done, not when all threads have come by: a thread that sleeps, or that the
// system has taken off its core between two chunks, is not waited for. (OpenMP's barriers wait for every thread; with one
// busy core of two that costs a time slice at each of some 100 loops in a step.)
//
//     ticket   | loop number 24 | chunks 20 | next chunk 20 |    claimed by compare-and-swap, so a late thread cannot
//                                                              take a chunk of a loop that it has not seen start
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace llmrun {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
   public:
    explicit Pool(int threads, int spin_us) : spin_us_(spin_us) {
        most_ = std::max(1, threads);
        active_ = most_;
        for (int i = 1; i < most_; i++) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        stop_ = true;
        wake();
        for (auto& worker : workers_) worker.join();
    }
    int most() const { return most_; }
    int active() const { return active_; }
    void set_active(int threads) { active_ = std::clamp(threads, 1, most_); }

    // Before and after a row of loops: threads wake up, and stay awake in between.
    void begin() {
        busy_.store(true, std::memory_order_seq_cst);
        if (active_ > 1 && parked_.load(std::memory_order_seq_cst) > most_ - active_) wake();
    }
    void end() { busy_.store(false, std::memory_order_relaxed); }

    // fn(chunk, thread) for each chunk < count. Only one caller at a time.
    template <class F>
    void run(int count, F&& fn) {
        if (count <= 1 || active_ == 1) {
            for (int i = 0; i < count; i++) fn(i, 0);
            return;
        }
        call_.store([](void* f, int chunk, int thread) { (*(std::remove_reference_t<F>*)f)(chunk, thread); },
                    std::memory_order_relaxed);
        argument_.store((void*)&fn, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        loop_ = (loop_ + 1) & 0xffffff;
        ticket_.store(loop_ << 40 | (uint64_t)count << 20, std::memory_order_release);
        while (take(0)) {
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) < count;) pause(spins);
    }

   private:
    typedef void (*Call)(void*, int, int);

    bool take(int thread) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        const int next = ticket & 0xfffff, count = ticket >> 20 & 0xfffff;
        if (next >= count) return false;
        const Call call = call_.load(std::memory_order_relaxed);
        void* argument = argument_.load(std::memory_order_relaxed);
        // A success proves that this loop still had an unclaimed chunk, so call and argument are this loop's.
        if (ticket_.compare_exchange_strong(ticket, ticket + 1, std::memory_order_acq_rel)) {
            call(argument, next, thread);
            done_.fetch_add(1, std::memory_order_release);
        }
        return true;
    }

    static void pause(int& spins) {
        if (++spins < 4000) {
            relax();
            return;
        }
        std::this_thread::yield();
    }

    void work(int thread) {
        using Clock = std::chrono::steady_clock;
        auto idle_since = Clock::now();
        for (int spins = 0; !stop_;) {
            if (thread < active_ && take(thread)) {
                spins = 0;
                idle_since = Clock::now();
                continue;
            }
            pause(spins);
            if (spins % 64 != 0 || (busy_.load(std::memory_order_relaxed) && thread < active_)) continue;
            if (Clock::now() - idle_since > std::chrono::microseconds(spin_us_)) {
                park(thread);
                idle_since = Clock::now();
                spins = 0;
            }
        }
    }

    void park(int thread) {
        const uint32_t seen = epoch_.load(std::memory_order_seq_cst);
        parked_.fetch_add(1, std::memory_order_seq_cst);
        if ((thread >= active_ || !busy_.load(std::memory_order_seq_cst)) && !stop_) {
#if defined(__linux__)
            syscall(SYS_futex, &epoch_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
            epoch_.wait(seen);
#endif
        }
        parked_.fetch_sub(1, std::memory_order_seq_cst);
    }
    void wake() {
        epoch_.fetch_add(1, std::memory_order_seq_cst);
#if defined(__linux__)
        syscall(SYS_futex, &epoch_, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#else
        epoch_.notify_all();
#endif
    }

    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<Call> call_{nullptr};
    std::atomic<void*> argument_{nullptr};
    std::atomic<bool> busy_{false}, stop_{false};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    std::atomic<int> parked_{0}, active_{1};
    uint64_t loop_ = 0;
    int most_, spin_us_;
    std::vector<std::thread> workers_;
};

}  // namespace llmrun

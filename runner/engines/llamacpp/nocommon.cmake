# Given to CMake as CMAKE_PROJECT_INCLUDE, so it runs after every project() call.
#
# llama-cpp-python forces LLAMA_BUILD_COMMON=ON into the cache, which compiles 40 % of the code for nothing. A normal
# variable of the inner project shadows the cache entry.
if(PROJECT_NAME STREQUAL "llama.cpp")
  set(LLAMA_BUILD_COMMON OFF)
endif()

#include "cuda.h"

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <queue>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr size_t kStack = size_t(256) << 10, kGuard = size_t(4) << 10;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = size_t(48) << 10;

struct Fiber {
  char* stack = nullptr;
  ucontext_t start;
  jmp_buf place;
  bool begun = false;
  dim3 thread;
  int index;  // in the block
  const char* waits = nullptr;
  int line;
};

// Where the threads of a block, or the lanes of a warp, wait for each other.
struct Meeting {
  const char* operation;
  int line;
  std::vector<Fiber*> arrived;
  Words brought[2][32];  // a lane may be one operation ahead of what another still reads
  unsigned round = 0;
};

std::mutex in_use;
std::string order = "forward";
std::mt19937 random_numbers;
cudaError_t last_error = cudaSuccess;

std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* current;
jmp_buf scheduler;
const std::function<void()>* body;
std::string failure;

// Runnable threads; the one of the highest rank runs until it waits.
std::priority_queue<std::pair<int64_t, Fiber*>> runnable;
unsigned threads, finished;
Meeting block_meeting;
std::vector<Meeting> warps;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
std::map<const void*, std::unique_ptr<void, Free>> shared_storage;
size_t shared_bytes;

int64_t rank(int64_t index) {
  if (order == "forward") return -index;
  return order == "reverse" ? index : int64_t(random_numbers());
}

void back_to_scheduler() {
  if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

// A fiber lives on after its thread and runs the next one.
void live() {
  for (;;) {
    (*body)();
    ++finished;
    back_to_scheduler();
  }
}

void go_to(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.thread;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

void prepare(Fiber& fiber, int index) {
  if (!fiber.stack) {
    void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulation: no memory for the stack of a thread");
    mprotect(memory, kGuard, PROT_NONE);
    fiber.stack = static_cast<char*>(memory) + kGuard;
  }
  if (!fiber.begun) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, live, 0);
  }
  fiber.index = index;
  fiber.thread = dim3(index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y);
  fiber.waits = nullptr;
}

void wait(Meeting& meeting, size_t company, const char* operation, int line) {
  if (!meeting.arrived.empty() && (meeting.line != line || std::strcmp(meeting.operation, operation)))
    fail(std::string(operation) + " at line " + std::to_string(line) + " while others wait in " + meeting.operation +
         " at line " + std::to_string(meeting.line));
  meeting.operation = current->waits = operation;
  meeting.line = current->line = line;
  meeting.arrived.push_back(current);
  if (meeting.arrived.size() == company) {
    for (Fiber* fiber : meeting.arrived) runnable.push({rank(fiber->index), fiber});
    meeting.arrived.clear();
    ++meeting.round;
  }
  back_to_scheduler();
  current->waits = nullptr;
}

std::string waiting() {
  std::map<std::string, int> places;
  for (unsigned i = 0; i < threads; ++i) {
    const Fiber& fiber = *fibers[i];
    if (fiber.waits) ++places[std::string(fiber.waits) + " at line " + std::to_string(fiber.line)];
  }
  std::string words = std::to_string(finished) + " of " + std::to_string(threads) + " threads have returned";
  for (const auto& [place, count] : places) words += ", " + std::to_string(count) + " wait in " + place;
  return words;
}

void run_block() {
  finished = 0;
  shared_storage.clear();
  shared_bytes = 0;
  block_meeting = {};
  warps.assign((threads + 31) / 32, {});
  runnable = {};
  for (unsigned i = 0; i < threads; ++i) {
    prepare(*fibers[i], int(i));
    runnable.push({rank(i), fibers[i].get()});
  }
  while (!runnable.empty() && failure.empty()) {
    Fiber& next = *runnable.top().second;
    runnable.pop();
    go_to(next);
  }
  if (failure.empty() && finished < threads) failure = "threads wait without end: " + waiting();
  shared_storage.clear();
}

}  // namespace

void fail(const std::string& what) {
  failure = what;
  _longjmp(scheduler, 1);
}

void run(dim3 grid, dim3 block, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(in_use);
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  threads = block.x * block.y * block.z;
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || threads == 0 ||
      threads > kMostThreads || block.z > 64) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  gridDim = grid;
  blockDim = block;
  body = &thread;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  std::vector<int64_t> turn(blocks);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == "reverse") std::reverse(turn.begin(), turn.end());
  if (order == "shuffled") std::shuffle(turn.begin(), turn.end(), random_numbers);
  failure.clear();
  for (const int64_t b : turn) {
    blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    run_block();
    if (failure.empty()) continue;
    for (const auto& fiber : fibers) fiber->begun = false;  // they stand amid a kernel
    throw std::runtime_error("emulated kernel, block (" + std::to_string(blockIdx.x) + ", " +
                             std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): " + failure);
  }
}

void* shared_memory(const void* declaration, size_t bytes) {
  auto& storage = shared_storage[declaration];
  if (!storage) {
    shared_bytes += bytes;
    if (shared_bytes > kMostShared) fail("more than 48 KB of shared memory in a block");
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes)) fail("no memory");
    std::memset(memory, 0xff, bytes);
    storage.reset(memory);
  }
  return storage.get();
}

int lane() { return current->index % 32; }

const Words* meet(const char* operation, int line, unsigned mask, const Words& mine) {
  Meeting& warp = warps[current->index / 32];
  if (mask != ~0u || threads % 32) fail("the emulation knows operations of whole warps only");
  const Words* all = warp.brought[warp.round % 2];
  warp.brought[warp.round % 2][lane()] = mine;
  wait(warp, 32, operation, line);
  return all;
}

}  // namespace emulation

void __syncthreads(int line) { emulation::wait(emulation::block_meeting, emulation::threads, "__syncthreads", line); }

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

// In the place of the instruction sets of the CPU kernels: the orders in which threads, and blocks, take their turns. A
// result that depends on it is a race.
namespace curvext::cpu {

std::vector<std::string> simd_levels() { return {"forward", "reverse", "shuffled"}; }
std::string simd_level() { return emulation::order; }
void use_simd(const std::string& level) { emulation::order = level; }
bool products_by_tiles() { return false; }
void use_products_by_tiles(bool) {}

}  // namespace curvext::cpu

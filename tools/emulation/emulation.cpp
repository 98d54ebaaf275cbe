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
constexpr unsigned kMostThreads = 1024;                                          // of a block
constexpr size_t kMostShared = size_t(48) << 10, kMostGiven = size_t(99) << 10;  // of the least processor

struct Copy {
  char* to;
  const void* from;  // null for zeros
};

struct Fiber {
  std::vector<std::vector<Copy>> groups{1};  // of copies on their way; the last one is open
  char* stack = nullptr;
  ucontext_t start;
  jmp_buf place;
  bool begun = false;
  dim3 thread, block;
  int index;      // in the cluster
  unsigned rank;  // of its block there
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
unsigned blocks_of_cluster, threads, finished;  // threads: of the cluster
Meeting cluster_meeting;
std::vector<Meeting> blocks, warps;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
struct Shared {
  std::unique_ptr<void, Free> memory;
  size_t bytes;  // of one block
};
std::map<const void*, Shared> shared_storage;  // by declaration: one block's after the other's
size_t shared_bytes, given_bytes;

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
    for (const auto& group : current->groups)
      if (!group.empty()) fail("a thread has returned with copies on their way");
    ++finished;
    back_to_scheduler();
  }
}

void go_to(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.thread;
  blockIdx = fiber.block;
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
  const int block_threads = int(threads / blocks_of_cluster), in_block = index % block_threads;
  fiber.index = index;
  fiber.rank = unsigned(index / block_threads);
  fiber.block = dim3(blockIdx.x + fiber.rank, blockIdx.y, blockIdx.z);
  fiber.thread = dim3(in_block % blockDim.x, in_block / blockDim.x % blockDim.y, in_block / blockDim.x / blockDim.y);
  fiber.waits = nullptr;
  fiber.groups.assign(1, {});
}

void complete(const Copy& copy) {
  if (copy.from) std::memcpy(copy.to, copy.from, 16);
  else std::memset(copy.to, 0, 16);
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

// From blockIdx on.
void run_cluster() {
  finished = 0;
  shared_storage.clear();
  shared_bytes = 0;
  cluster_meeting = {};
  blocks.assign(blocks_of_cluster, {});
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

void run(dim3 grid, dim3 block, const std::function<void()>& thread, unsigned size, size_t given) {
  const std::lock_guard<std::mutex> lock(in_use);
  const int64_t clusters = int64_t(grid.x) * grid.y * grid.z / size;
  const unsigned block_threads = block.x * block.y * block.z;
  threads = block_threads * size;
  blocks_of_cluster = size;
  if (clusters == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block_threads == 0 ||
      block_threads > kMostThreads || block.z > 64) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (given > kMostGiven) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  given_bytes = given;
  gridDim = grid;
  blockDim = block;
  body = &thread;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  std::vector<int64_t> turn(clusters);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == "reverse") std::reverse(turn.begin(), turn.end());
  if (order == "shuffled") std::shuffle(turn.begin(), turn.end(), random_numbers);
  failure.clear();
  for (const int64_t cluster : turn) {
    const int64_t b = cluster * size;
    blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    run_cluster();
    if (failure.empty()) continue;
    for (const auto& fiber : fibers) fiber->begun = false;  // they stand amid a kernel
    throw std::runtime_error("emulated kernel, block (" + std::to_string(blockIdx.x) + ", " +
                             std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): " + failure);
  }
}

void* shared_memory(const void* declaration, size_t bytes) {
  auto& storage = shared_storage[declaration];
  if (!storage.memory) {
    if (declaration != &given_bytes) shared_bytes += bytes;
    if (shared_bytes > kMostShared) fail("more than 48 KB of shared memory in a block");
    storage.bytes = (bytes + 127) / 128 * 128;
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, storage.bytes * blocks_of_cluster)) fail("no memory");
    std::memset(memory, 0xff, storage.bytes * blocks_of_cluster);
    storage.memory.reset(memory);
  }
  return static_cast<char*>(storage.memory.get()) + current->rank * storage.bytes;
}

void* given_shared(size_t bytes) {
  if (bytes > given_bytes) fail("the launch gives less shared memory than that");
  return shared_memory(&given_bytes, bytes);
}

void start_copy(void* shared, const void* global) {
  const Copy copy{static_cast<char*>(shared), global};
  if (order == "forward" || (order == "shuffled" && random_numbers() % 2)) complete(copy);
  else current->groups.back().push_back(copy);
}

void commit_copies() { current->groups.emplace_back(); }

void wait_copies(size_t pending) {
  auto& groups = current->groups;
  while (groups.size() > pending + 1) {
    std::shuffle(groups.front().begin(), groups.front().end(), random_numbers);
    for (const Copy& copy : groups.front()) complete(copy);
    groups.erase(groups.begin());
  }
}

bool in_reverse() { return order == "reverse"; }
void cluster_barrier(const char* operation, int line) { wait(cluster_meeting, threads, operation, line); }

void* in_block(void* shared, unsigned rank) {
  if (rank >= blocks_of_cluster) fail("no block " + std::to_string(rank) + " in the cluster");
  for (const auto& [declaration, storage] : shared_storage) {
    char* own = static_cast<char*>(storage.memory.get()) + current->rank * storage.bytes;
    if (shared >= own && shared < own + storage.bytes)
      return static_cast<char*>(shared) + (int64_t(rank) - current->rank) * int64_t(storage.bytes);
  }
  fail("an address outside the block's shared memory");
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

void __syncthreads(int line) {
  using namespace emulation;
  wait(blocks[current->rank], threads / blocks_of_cluster, "__syncthreads", line);
}

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

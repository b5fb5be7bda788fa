// Runs one entry of the kernels on a problem read from stdin, and writes every buffer to stdout:
// for another processor, under an emulator, or for this one, under sanitizers.

#if defined(__aarch64__)
// What the kernels need of torch, for one thread: there is no torch for the emulator.
namespace at {
void init_num_threads() {}
void set_num_threads(int) {}
int get_num_threads() { return 1; }
int get_thread_num() { return 0; }
bool in_parallel_region() { return false; }
namespace internal {
void set_thread_num(int) {}
}  // namespace internal
}  // namespace at

namespace c10 {
ParallelGuard::ParallelGuard(bool) : previous_state_(false) {}
ParallelGuard::~ParallelGuard() {}
}  // namespace c10
#endif

template <class E>
E read_one() {
  E x;
  if (fread(&x, sizeof(E), 1, stdin) != 1) exit(9);
  return x;
}

// stdin: the struct's size and bytes; the number of buffers, and for each its size and bytes; the
// number of pointers, and for each its place in the struct, its buffer, and the offset in bytes.
int main() {
  std::vector<char> problem(read_one<int64_t>());
  if (fread(problem.data(), 1, problem.size(), stdin) != problem.size()) return 9;
  std::vector<std::vector<char>> buffers(read_one<int64_t>());
  for (auto& buffer : buffers) {
    buffer.resize(read_one<int64_t>());
    if (fread(buffer.data(), 1, buffer.size(), stdin) != buffer.size()) return 9;
  }
  for (int64_t i = read_one<int64_t>(); i > 0; --i) {
    const int64_t place = read_one<int64_t>(), which = read_one<int64_t>();
    const char* at = buffers[which].data() + read_one<int64_t>();
    std::memcpy(problem.data() + place, &at, sizeof(at));
  }
  const int status = ENTRY(reinterpret_cast<PROBLEM*>(problem.data()), problem.size());
  for (auto& buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), stdout);
  return status;
}

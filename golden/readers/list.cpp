// A line for each case: its id, allowed pairs, numbers, and their sum; all readers print the same.
//   g++ -std=c++17 -O1 list.cpp -o list && ./list path/to/golden
#include <cstdio>
#include <numeric>

#include "golden.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: list DIRECTORY\n", stderr), 2;
  for (const golden::Case& c : golden::cases(argv[1])) {
    const std::vector<int> counts = c.counts();
    double sum = 0;
    size_t numbers = 0;
    for (const auto& tensor : c.tensors) {
      numbers += tensor.second.data.size();
      for (double x : tensor.second.data) sum += std::isfinite(x) ? x : 0;
    }
    uint64_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    const int pairs = std::accumulate(counts.begin(), counts.end(), 0);
    std::printf("%s %d %zu %016llx\n", c.id.c_str(), pairs, numbers, (unsigned long long)bits);
  }
}

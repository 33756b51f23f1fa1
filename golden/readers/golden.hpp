// Golden files in C++17: copy this file; README.md shows its use. 0BSD.
// It trusts its files: check them with `sha256sum -c SHA256SUMS` first. Little-endian machines.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace golden {

struct Json {
  enum Kind { null, boolean, number, string, array, object } kind = null;
  std::string text;  // of a string, a boolean and a number: integers below 2^64 stay exact
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;

  const Json* find(const std::string& key) const {
    for (const auto& field : fields)
      if (field.first == key) return &field.second;
    return nullptr;
  }
  const Json& operator[](const std::string& key) const {
    if (const Json* found = find(key)) return *found;
    throw std::runtime_error("no field " + key);
  }
  double real() const { return std::strtod(text.c_str(), nullptr); }
  int64_t integer() const { return std::strtoll(text.c_str(), nullptr, 10); }
  uint64_t word() const { return std::strtoull(text.c_str(), nullptr, 10); }
};

class Parser {
 public:
  explicit Parser(const std::string& source) : s(source) {}
  Json all() { return parse(); }

 private:
  const std::string& s;
  size_t at = 0;
  [[noreturn]] void fail() const { throw std::runtime_error("JSON at " + std::to_string(at)); }
  char skip() {
    while (at < s.size() && std::strchr(" \n\r\t", s[at])) ++at;
    return at < s.size() ? s[at] : '\0';
  }
  bool take(char c) { return skip() == c && ++at; }
  std::string quoted() {  // the files are ASCII, and escape quotes and backslashes only
    std::string out;
    if (!take('"')) fail();
    for (; at < s.size() && s[at] != '"'; ++at) out += s[at] == '\\' ? s.at(++at) : s[at];
    if (!take('"')) fail();
    return out;
  }
  Json parse() {
    Json v;
    const char c = skip();
    if (c == '{') {
      v.kind = Json::object;
      for (++at; !take('}'); take(',')) {
        std::string key = quoted();
        if (!take(':')) fail();
        v.fields.emplace_back(key, parse());
      }
    } else if (c == '[') {
      v.kind = Json::array;
      for (++at; !take(']'); take(',')) v.items.push_back(parse());
    } else if (c == '"') {
      v.kind = Json::string;
      v.text = quoted();
    } else {
      const size_t begin = at;
      while (at < s.size() && std::strchr("+-.0123456789eEtrufalsn", s[at])) ++at;
      if (at == begin) fail();
      v.text = s.substr(begin, at - begin);
      v.kind = c == 'n' ? Json::null : c == 't' || c == 'f' ? Json::boolean : Json::number;
    }
    return v;
  }
};

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<double> data;
  Tensor() = default;
  explicit Tensor(const Json& json) {
    for (const Json& extent : json["shape"].items) shape.push_back(extent.integer());
  }
};

struct Case {
  std::string id;
  Json json;  // as the manifest writes it
  std::vector<std::pair<std::string, Tensor>> tensors;

  const Tensor* find(const std::string& name) const {
    for (const auto& tensor : tensors)
      if (tensor.first == name) return &tensor.second;
    return nullptr;
  }
  const Tensor& at(const std::string& name) const {
    if (const Tensor* found = find(name)) return *found;
    throw std::runtime_error(id + " has no tensor " + name);
  }
  int64_t size(const char* axis) const { return json["sizes"][axis].integer(); }

  // How often each key counts, row-major (batch, heads, m, n) of json["mask"]; 0: not seen.
  std::vector<int> counts() const {
    std::vector<int> found;
    for (const Json& row : json["mask"]["rows"].items)
      for (const char* c = row.text.c_str(); *c; ++c) {
        char* end = const_cast<char*>(c);
        const long times = *c >= '0' && *c <= '9' ? std::strtol(c, &end, 10) : 1;
        c = end;
        found.insert(found.end(), times, *c == '.' ? 0 : *c == '#' ? 1 : *c - 'a' + 1);
      }
    return found;
  }

  // Whether an answer is within its bound; kind: float32, float16 or bfloat16.
  template <class T>
  bool passes(const std::string& name, const std::string& kind, const std::vector<T>& got) const {
    const auto &want = at(name).data, &bound = at("bound." + kind + "." + name).data;
    bool fine = got.size() == want.size();
    for (size_t i = 0; fine && i < want.size(); ++i) {
      const double x = got[i], y = want[i];
      fine = x == y || (std::isnan(x) && std::isnan(y)) || std::fabs(x - y) <= bound[i];
    }
    return fine;
  }
};

inline std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

template <class T>
T little(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline double half(uint16_t b) {
  const int e = (b >> 10) & 31, f = b & 1023;
  const double most = f ? NAN : INFINITY;
  const double x = e == 31 ? most : e ? std::ldexp(1024 + f, e - 25) : std::ldexp(f, -24);
  return b & 0x8000 ? -x : x;
}

inline void blob(const std::string& path, std::map<std::string, Tensor>& found) {
  const std::string bytes = read(path);
  const size_t start = 8 + little<uint64_t>(bytes.data());
  const std::string header = bytes.substr(8, start - 8);
  for (const auto& [name, entry] : Parser(header).all().fields) {
    Tensor t(entry);
    const char width = entry["dtype"].text[1];  // F64, F32 or F16
    const auto& ends = entry["data_offsets"].items;
    const char* p = bytes.data() + start + ends[0].integer();
    const char* end = bytes.data() + start + ends[1].integer();
    for (; p < end; p += width == '6' ? 8 : width == '3' ? 4 : 2)
      t.data.push_back(width == '6'   ? little<double>(p)
                       : width == '3' ? little<float>(p)
                                      : half(little<uint16_t>(p)));
    found[name] = std::move(t);
  }
}

inline std::vector<Case> cases(const std::string& directory) {
  const std::string text = read(directory + "/manifest.json");
  const Json manifest = Parser(text).all();
  if (manifest["format"].integer() != 1) throw std::runtime_error("format must be 1");
  std::map<std::string, Tensor> blobs;
  for (const auto& entry : manifest["blobs"].fields) blob(directory + "/" + entry.first, blobs);
  std::vector<Case> found;
  for (const Json& json : manifest["cases"].items) {
    if (json["result"].text != "valid") continue;
    Case c{json["id"].text, json, {}};
    if (const Json* names = json.find("tensors"))
      for (const Json& name : names->items)
        c.tensors.emplace_back(name.text, blobs.at(c.id + "/" + name.text));
    if (const Json* parts = json.find("inline"))
      for (const auto& [name, entry] : parts->fields) {
        Tensor t(entry);
        std::istringstream words(entry["values"].text);
        for (std::string word; words >> word;) t.data.push_back(std::strtod(word.c_str(), nullptr));
        c.tensors.emplace_back(name, std::move(t));
      }
    found.push_back(std::move(c));
  }
  return found;
}

}  // namespace golden

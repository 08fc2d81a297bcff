// Runs an exported folder with onnxruntime's C++ API: the stages in order, stopping row by row at the first confident one.
//
//   dispatcher OUT IMAGES [BUDGET]    IMAGES: float32 model input, raw, one image after the other
//
// prints a line per image: stage, confidence, output. What manifest.json says: docs/manifest.md. The reference for every
// answer is s2d_runtime.Dispatcher, which also checks the folder (hashes, types, shapes); this program trusts it.

#define ORT_API_MANUAL_INIT  // the library is opened at run time, so one binary runs with any from ORT_API_VERSION on
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::json;
using Names = std::vector<std::string>;
using Rows = std::vector<size_t>;

// The exit rule of docs/manifest.md ("The exit rule"): float32 against float32; NaN never leaves.
static bool leaves(float confidence, float threshold) { return confidence >= threshold; }

struct Tensor {  // the batch first
  std::vector<float> data;
  std::vector<int64_t> shape;

  size_t width() const { return std::accumulate(shape.begin() + 1, shape.end(), size_t{1}, std::multiplies<>()); }

  Tensor at(const Rows& rows) const {
    Tensor made{{}, shape};
    made.shape[0] = static_cast<int64_t>(rows.size());
    for (size_t row : rows) {
      auto first = data.begin() + static_cast<std::ptrdiff_t>(row * width());
      made.data.insert(made.data.end(), first, first + static_cast<std::ptrdiff_t>(width()));
    }
    return made;
  }
};

struct Answer {
  std::vector<std::vector<float>> output;  // [B][...]
  std::vector<int> stage;                  // [B], from 1
  std::vector<float> confidence;           // [B]
};

class Dispatcher {
 public:
  explicit Dispatcher(const std::string& folder) {
    std::ifstream file(folder + "/manifest.json");
    if (!file) throw std::runtime_error(folder + "/manifest.json: cannot be read; give a folder that s2d-convert wrote");
    manifest_ = json::parse(file);
    if (manifest_.at("format") != "s2d-convert" || manifest_.at("version") != 1)
      throw std::runtime_error(folder + "/manifest.json: not format 1 of s2d-convert");
    if (manifest_["input"]["dtype"] != "float32")
      throw std::runtime_error(folder + "/manifest.json: input.dtype: only float32 is supported here");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    for (const json& stage : manifest_.at("stages"))
      sessions_.emplace_back(env_, (folder + "/" + stage.at("file").get<std::string>()).c_str(), options);
  }

  double default_budget() const { return manifest_.at("default_budget"); }

  // The shape of the input for so many images.
  std::vector<int64_t> shape(int64_t rows) const {
    std::vector<int64_t> found{rows};
    const json& lengths = manifest_["input"]["shape"];
    for (size_t axis = 1; axis < lengths.size(); ++axis) found.push_back(lengths[axis]);
    return found;
  }

  Answer operator()(Tensor images, double budget) {
    size_t rows = static_cast<size_t>(images.shape[0]);
    const json& stages = manifest_["stages"];
    std::vector<double> thresholds = policy(budget).at("thresholds");
    Answer answer{std::vector<std::vector<float>>(rows), std::vector<int>(rows), std::vector<float>(rows)};
    Rows here(rows);  // which images the rows are
    std::iota(here.begin(), here.end(), size_t{0});
    std::map<std::string, Tensor> values;
    values[manifest_["input"]["name"]] = std::move(images);
    for (size_t k = 0; k < stages.size() && !here.empty(); ++k) {
      run(k, values);
      const Tensor &output = values["output"], &confidence = values["confidence"];
      Rows staying;
      for (size_t row = 0; row < here.size(); ++row) {
        if (k + 1 < stages.size() && !leaves(confidence.data[row], static_cast<float>(thresholds[k]))) {
          staying.push_back(row);
          continue;
        }
        answer.output[here[row]] = output.at({row}).data;
        answer.stage[here[row]] = static_cast<int>(k) + 1;
        answer.confidence[here[row]] = confidence.data[row];
      }
      std::set<std::string> later = read_after(k);
      for (auto it = values.begin(); it != values.end();) it = later.count(it->first) ? std::next(it) : values.erase(it);
      if (staying.size() < here.size()) {
        for (auto& [name, tensor] : values) tensor = tensor.at(staying);
        for (size_t& row : staying) row = here[row];
        here = std::move(staying);
      }
    }
    return answer;
  }

 private:
  // The policy that serves a budget: the largest calibrated one that is not above it, or else the smallest.
  const json& policy(double budget) const {
    const json *best = nullptr, *least = nullptr;
    for (const json& one : manifest_["policies"]) {
      double own = one.at("budget");
      if (!least || own < least->at("budget").get<double>()) least = &one;
      if (own <= budget + 1e-9 && (!best || own > best->at("budget").get<double>())) best = &one;
    }
    return best ? *best : *least;
  }

  Names reads(size_t k) const {
    const json& stage = manifest_["stages"][k];
    Names names = stage["links_in"];
    if (stage["image"]) names.push_back(manifest_["input"]["name"]);
    return names;
  }

  std::set<std::string> read_after(size_t k) const {
    std::set<std::string> found;
    while (++k < sessions_.size())
      for (const std::string& name : reads(k)) found.insert(name);
    return found;
  }

  void run(size_t k, std::map<std::string, Tensor>& values) {
    Names in = reads(k), out{"output", "confidence"};
    for (const json& link : manifest_["stages"][k]["links_out"]) out.push_back(link["name"]);
    std::vector<const char*> in_names, out_names;
    std::vector<Ort::Value> given;
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    for (const std::string& name : in) {
      Tensor& t = values.at(name);
      in_names.push_back(name.c_str());
      given.push_back(
          Ort::Value::CreateTensor<float>(memory, t.data.data(), t.data.size(), t.shape.data(), t.shape.size()));
    }
    for (const std::string& name : out) out_names.push_back(name.c_str());
    auto found = sessions_[k].Run(
        Ort::RunOptions{}, in_names.data(), given.data(), given.size(), out_names.data(), out_names.size());
    for (size_t i = 0; i < out.size(); ++i) {
      auto info = found[i].GetTensorTypeAndShapeInfo();
      const float* data = found[i].GetTensorData<float>();
      values[out[i]] = Tensor{{data, data + info.GetElementCount()}, info.GetShape()};
    }
  }

  json manifest_;
  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR, "s2d"};
  std::vector<Ort::Session> sessions_;
};

static void open_onnxruntime() {
  const char* library = std::getenv("ORT_LIBRARY");
  void* opened = dlopen(library ? library : "libonnxruntime.so.1", RTLD_NOW);
  void* symbol = opened ? dlsym(opened, "OrtGetApiBase") : nullptr;
  if (!symbol) throw std::runtime_error(std::string(dlerror()) + "; ORT_LIBRARY may name libonnxruntime.so");
  const OrtApi* api = reinterpret_cast<const OrtApiBase* (*)()>(symbol)()->GetApi(ORT_API_VERSION);
  if (!api) throw std::runtime_error("this onnxruntime is older than the headers; use a newer library");
  Ort::InitApi(api);
}

int main(int argc, char** argv) try {
  if (argc != 3 && argc != 4) throw std::runtime_error("usage: dispatcher OUT IMAGES [BUDGET]");
  open_onnxruntime();
  Dispatcher dispatcher(argv[1]);
  std::ifstream file(argv[2], std::ios::binary | std::ios::ate);
  size_t bytes = file ? static_cast<size_t>(file.tellg()) : 0;
  Tensor images{std::vector<float>(bytes / sizeof(float)), dispatcher.shape(0)};
  size_t image_bytes = images.width() * sizeof(float);
  if (!file || bytes % image_bytes)
    throw std::runtime_error(std::string(argv[2]) + ": expected images of " + std::to_string(image_bytes) + " bytes each");
  file.seekg(0).read(reinterpret_cast<char*>(images.data.data()), static_cast<std::streamsize>(bytes));
  images.shape[0] = static_cast<int64_t>(bytes / image_bytes);
  Answer answer = dispatcher(std::move(images), argc == 4 ? std::stod(argv[3]) : dispatcher.default_budget());
  for (size_t row = 0; row < answer.stage.size(); ++row) {
    std::printf("%d %.9g", answer.stage[row], answer.confidence[row]);
    for (float value : answer.output[row]) std::printf(" %.9g", value);
    std::printf("\n");
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}

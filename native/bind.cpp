// Python's view of the engine. Everything here is private to steno.models.native, which holds the public contract.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "fault.h"
#include "pool.h"
#include "session.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace steno;

namespace {

template <class T, size_t N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, size_t N>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<N>>;

// An array over engine memory. It holds a reference, so it outlives whatever the session does next.
template <class T, size_t N>
Out<T, N> view(const std::shared_ptr<Memory>& memory, T* data, std::initializer_list<size_t> shape, std::initializer_list<int64_t> strides = {}) {
  auto* kept = new std::shared_ptr<Memory>(memory);
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::shared_ptr<Memory>*>(p); });
  return Out<T, N>(data, N, shape.begin(), owner, strides.size() ? strides.begin() : nullptr);
}

void require(bool holds, const char* what) {
  if (!holds) throw Fault(Fault::VALUE, what);
}

void forward(Session& s, In<int32_t, 2> tokens, In<int32_t, 2> parents, std::optional<In<int32_t, 2>> positions,
             std::optional<In<bool, 3>> visible, std::optional<In<float, 3>> embeds, int low, int high, bool logits,
             const std::vector<int>& hidden) {
  size_t b = s.rows(), w = parents.shape(1);
  auto fits = [&](const auto& a) { return a.shape(0) == b && a.shape(1) == w; };
  require(parents.shape(0) == b, "nodes.parents: must be [B, W] with one line per row of the session");
  require(fits(tokens), "nodes.tokens: must have the shape of nodes.parents");
  require(!positions || fits(*positions), "nodes.positions: must have the shape of nodes.parents");
  require(!visible || (fits(*visible) && visible->shape(2) == w), "nodes.visible: must be [B, W, W]");
  require(!embeds || (fits(*embeds) && embeds->shape(2) == (size_t)s.model->c.width), "nodes.embeds: must be [B, W, M] with M the model's width");
  require(w <= MAX_WIDTH, "nodes: a row may have at most 256 nodes");
  Request r;
  r.width = (int)w;
  r.tokens = tokens.data();
  r.parents = parents.data();
  if (positions) r.positions = positions->data();
  if (visible) r.visible = visible->data();
  if (embeds) r.embeds = embeds->data();
  r.low = low;
  r.high = high < 0 ? s.model->c.layers : high;
  r.logits = logits;
  r.hidden = hidden;
  nb::gil_scoped_release release;
  s.forward(r);
}

Out<float, 3> logits(Session& s) {
  require(s.has_logits, "step.logits: the forward was asked for no logits");
  int64_t w = s.width, v = (int64_t)s.vocab_stride;
  return view<float, 3>(s.logits.memory, s.logits.data(), {(size_t)s.rows(), (size_t)w, (size_t)s.model->c.vocab}, {w * v, v, 1});
}

Out<int32_t, 2> best(Session& s) {
  require(s.has_logits, "step.argmax: the forward was asked for no logits");
  return view<int32_t, 2>(s.best.memory, s.best.data(), {(size_t)s.rows(), (size_t)s.width});
}

Out<float, 3> hidden(Session& s, int layer) {
  for (size_t j = 0; j < s.hidden_layers.size(); j++)
    if (s.hidden_layers[j] == layer) {
      size_t one = (size_t)s.rows() * s.width * s.model->c.width;
      return view<float, 3>(s.hidden.memory, s.hidden.data() + j * one, {(size_t)s.rows(), (size_t)s.width, (size_t)s.model->c.width});
    }
  throw Fault(Fault::VALUE, "step.hidden: layer " + std::to_string(layer) + " was not asked for; name it in Want.hidden");
}

auto top(Session& s, int count) {
  require(s.has_logits, "step.top: the forward was asked for no logits");
  require(count >= 1 && count <= s.model->c.vocab, "step.top: count must be between 1 and the vocabulary's size");
  size_t n = (size_t)s.rows() * s.width * count;
  auto ids = std::make_shared<Memory>(n * 4), values = std::make_shared<Memory>(n * 4);
  auto* i = static_cast<int32_t*>(ids->data);
  auto* v = static_cast<float*>(values->data);
  {
    nb::gil_scoped_release release;
    s.top(count, i, v);
  }
  std::initializer_list<size_t> shape = {(size_t)s.rows(), (size_t)s.width, (size_t)count};
  return nb::make_tuple(view<int32_t, 3>(ids, i, shape), view<float, 3>(values, v, shape));
}

nb::object prefill(Session& s, const std::vector<std::vector<int32_t>>& prompts, bool last) {
  Scratch<float> out;
  float* p = last ? out.get(s.rows() * s.vocab_stride) : nullptr;
  {
    nb::gil_scoped_release release;
    // A long prompt takes a while: let Ctrl-C through. Whoever waits for the model's lock has let go of the interpreter's.
    s.prefill(prompts, p, [] {
      nb::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals()) throw nb::python_error();
    });
  }
  if (!last) return nb::none();
  return nb::cast(view<float, 2>(out.memory, p, {(size_t)s.rows(), (size_t)s.model->c.vocab}, {(int64_t)s.vocab_stride, 1}));
}

Out<float, 2> head(Session& s, In<float, 2> states) {
  require(states.shape(1) == (size_t)s.model->c.width, "head: hidden states must be [..., M] with M the model's width");
  size_t n = states.shape(0);
  Scratch<float> out;
  float* p = out.get(n * s.vocab_stride + 1);
  {
    nb::gil_scoped_release release;
    s.head(states.data(), (int)n, p);
  }
  return view<float, 2>(out.memory, p, {n, (size_t)s.model->c.vocab}, {(int64_t)s.vocab_stride, 1});
}

Out<float, 2> embed(Model& m, In<int32_t, 1> ids) {
  size_t n = ids.shape(0);
  for (size_t i = 0; i < n; i++)
    if (ids.data()[i] < 0 || ids.data()[i] >= m.c.vocab)
      throw Fault(Fault::PROMPT, "embed: token " + std::to_string(ids.data()[i]) + " is outside the vocabulary of " + std::to_string(m.c.vocab));
  Scratch<float> out;
  float* p = out.get(n * m.dp + 1);
  for (size_t i = 0; i < n; i++) m.embed(ids.data()[i], p + i * m.dp);
  return view<float, 2>(out.memory, p, {n, (size_t)m.c.width}, {(int64_t)m.dp, 1});
}

auto kept(Session& s, int row, int layer, int from, std::optional<int> to) {
  require(row >= 0 && row < s.rows() && layer >= 0 && layer < s.model->c.layers, "kept: no such row or layer");
  int end = to.value_or(s.length(row));
  require(from >= 0 && from <= end && end <= s.length(row), "kept: the row is not that long");
  size_t tokens = end - from;
  std::initializer_list<size_t> shape = {(size_t)s.model->c.kv_heads, tokens, (size_t)s.model->c.head_dim};
  size_t n = s.model->c.kv_heads * tokens * s.model->c.head_dim * sizeof(float);
  auto k = std::make_shared<Memory>(n), v = std::make_shared<Memory>(n);
  auto *keys = static_cast<float*>(k->data), *values = static_cast<float*>(v->data);
  s.kept(row, layer, from, end, keys, values);
  return nb::make_tuple(view<float, 3>(k, keys, shape), view<float, 3>(v, values, shape));
}

void append(Session& s, int row, In<float, 4> keys, In<float, 4> values) {
  const Config& c = s.model->c;
  require(row >= 0 && row < s.rows(), "append: no such row");
  for (auto* a : {&keys, &values})
    require(a->shape(0) == (size_t)c.layers && a->shape(1) == (size_t)c.kv_heads && a->shape(2) == keys.shape(2) && a->shape(3) == (size_t)c.head_dim,
            "append: keys and values must be [L, G, T, D] of this model");
  nb::gil_scoped_release release;
  s.append(row, (int)keys.shape(2), keys.data(), values.data());
}

Out<uint8_t, 1> codes(Session& s, int row) {
  require(row >= 0 && row < s.rows(), "codes: no such row");
  size_t n = s.code_bytes(s.sealed(row));
  auto memory = std::make_shared<Memory>(n + 1);
  auto* data = static_cast<uint8_t*>(memory->data);
  s.copy_codes(row, data);
  return view<uint8_t, 1>(memory, data, {n});
}

void restore(Session& s, int row, int sealed, In<uint8_t, 1> codes) {
  require(row >= 0 && row < s.rows() && s.length(row) == 0, "restore: no such row, or it is not empty");
  require(sealed >= 0 && sealed <= s.capacity && s.form().due(s.capacity) >= sealed, "restore: the row cannot have so many sealed tokens");
  require(codes.shape(0) == s.code_bytes(sealed), "restore: the sealed tokens are not of this form");
  s.restore(row, sealed, codes.data());
}

using Words = std::array<uint32_t, 4>;

Out<float, 1> gumbel(const Words& key, size_t n) {
  auto memory = std::make_shared<Memory>(n * sizeof(float) + 1);
  auto* data = static_cast<float*>(memory->data);
  kernels().gumbel(key.data(), (int)n, data);
  return view<float, 1>(memory, data, {n});
}

int draw(const Words& key, In<float, 1> logits) { return kernels().draw(key.data(), logits.data(), (int)logits.shape(0)); }

}  // namespace

NB_MODULE(_engine, mod) {
  // nanobind would report the classes below as leaked where a test keeps a traceback alive; that is not ours to judge.
  nb::set_leak_warnings(false);
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Fault& f) {
      if (f.kind == Fault::VALUE) {  // misuse of the protocol by a program, not a request to mend
        PyErr_SetString(PyExc_ValueError, f.what());
        return;
      }
      const char* names[] = {"ValueError", "UserError", "PromptError", "CapsError", "ModelError"};
      nb::object type = nb::module_::import_("steno.core.errors").attr(names[f.kind]);
      PyErr_SetString(type.ptr(), f.what());
    }
  });

  mod.attr("MAX_WIDTH") = MAX_WIDTH;
  mod.attr("MAX_THREADS") = MAX_THREADS;
  mod.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (auto n = kernel_names(); *n; n++) names.push_back(*n);
    return names;
  }, "Instruction sets this processor can run, best first.");

  mod.def("insist_on_threads", [](bool always) { Pool::get().insist(always); },
          "Use every thread even where fewer would be faster; for tests.");

  mod.def("gumbel", &gumbel, "key"_a, "count"_a, "Standard Gumbel noise, a function of the key's four words.");
  mod.def("draw", &draw, "key"_a, "logits"_a.noconvert(), "argmax(logits + gumbel(key)), the lowest id among equals.");

  nb::enum_<Model::Part>(mod, "Part")
      .value("QKV", Model::QKV).value("OUT", Model::OUT).value("GATE_UP", Model::GATE_UP).value("DOWN", Model::DOWN).value("HEAD", Model::HEAD);
  nb::enum_<Model::Norm>(mod, "Norm")
      .value("IN", Model::NORM_IN).value("MID", Model::NORM_MID).value("Q", Model::NORM_Q).value("K", Model::NORM_K).value("OUT", Model::NORM_OUT);

  nb::enum_<Matrix::Kind>(mod, "Kind")
      .value("F32", Matrix::F32).value("BF16", Matrix::BF16).value("I8", Matrix::I8).value("I4", Matrix::I4);
  nb::enum_<Model::Embedding>(mod, "Embedding")
      .value("IN_HEAD", Model::IN_HEAD).value("F32", Model::ROWS_F32).value("BF16", Model::ROWS_BF16).value("F16", Model::ROWS_F16);

  nb::class_<Model>(mod, "Model")
      .def("__init__", [](Model* self, int width, int layers, int heads, int kv_heads, int head_dim, int inner, int vocab, int context,
                          float norm_eps, Matrix::Kind kind, Matrix::Kind head_kind, int group, Model::Embedding embedding, bool qkv_bias,
                          bool out_bias, bool mlp_bias, bool qk_norm, std::vector<int> windows, std::vector<int> rotary,
                          std::vector<float> frequency, int threads, const std::string& packed, const std::string& key) {
        for (int v : {width, layers, heads, kv_heads, head_dim, inner, vocab, context, threads}) require(v >= 1, "a model's sizes must be positive");
        require(heads % kv_heads == 0, "query heads must be a multiple of key heads");
        require(head_dim % 2 == 0 && head_dim <= 1024, "head_dim must be even and at most 1024");
        require(group > 0 && group % COLUMNS == 0, "int4 groups are multiples of 32 columns");
        require((int)windows.size() == layers && (int)rotary.size() == layers, "windows and rotary have one entry per layer");
        require((int)frequency.size() == head_dim / 2, "frequency has one entry per pair of head dimensions");
        require(threads <= MAX_THREADS, "too many threads");
        Config c{width, layers, heads, kv_heads, head_dim, inner, vocab, context, norm_eps, kind, head_kind, group, embedding, qkv_bias,
                 out_bias, mlp_bias, qk_norm, std::move(windows), std::move(rotary), std::move(frequency), threads};
        nb::gil_scoped_release release;
        new (self) Model(std::move(c), packed, key);
      }, nb::kw_only(), "width"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "inner"_a, "vocab"_a, "context"_a, "norm_eps"_a,
         "kind"_a, "head_kind"_a, "group"_a, "embedding"_a, "qkv_bias"_a, "out_bias"_a, "mlp_bias"_a, "qk_norm"_a, "windows"_a,
         "rotary"_a, "frequency"_a, "threads"_a, "packed"_a, "key"_a)
      .def("put_floats", [](Model& m, Model::Part p, int layer, int row, In<float, 2> w) {
        nb::gil_scoped_release release;
        m.put_floats(p, layer, row, (int)w.shape(0), (int)w.shape(1), w.data());
      })
      .def("put_bytes", [](Model& m, Model::Part p, int layer, int row, In<int8_t, 2> w, In<float, 1> scale) {
        require(scale.shape(0) == w.shape(0), "one scale per row");
        nb::gil_scoped_release release;
        m.put_bytes(p, layer, row, (int)w.shape(0), (int)w.shape(1), w.data(), scale.data());
      })
      .def("put_nibbles", [](Model& m, Model::Part p, int layer, int row, In<int8_t, 2> w, In<uint16_t, 2> scale) {
        require(scale.shape(0) == w.shape(0) && scale.shape(1) * m.c.group == w.shape(1), "one scale per row and group");
        nb::gil_scoped_release release;
        m.put_nibbles(p, layer, row, (int)w.shape(0), (int)w.shape(1), w.data(), scale.data());
      })
      .def("put_bias", [](Model& m, Model::Part p, int layer, int row, In<float, 1> b) { m.put_bias(p, layer, row, (int)b.shape(0), b.data()); })
      .def("put_norm", [](Model& m, Model::Norm n, int layer, In<float, 1> w) { m.put_norm(n, layer, (int)w.shape(0), w.data()); })
      .def("put_embedding", [](Model& m, In<float, 2> w) {
        require(w.shape(0) == (size_t)m.c.vocab && w.shape(1) == (size_t)m.c.width && m.c.embedding == Model::ROWS_F32, "the embedding is [V, M]");
        m.put_embedding(w.data());
      })
      .def("put_embedding_half", [](Model& m, In<uint16_t, 2> w) {
        require(w.shape(0) == (size_t)m.c.vocab && w.shape(1) == (size_t)m.c.width &&
                    (m.c.embedding == Model::ROWS_BF16 || m.c.embedding == Model::ROWS_F16), "the embedding is [V, M]");
        m.put_embedding(w.data());
      })
      .def("ready", &Model::ready)
      .def("embed", &embed)
      .def_prop_ro("isa", [](Model& m) { return m.k.name; })
      .def_prop_ro("threads", [](Model& m) { return m.c.threads; })
      .def_prop_ro("gate_rows", [](Model& m) { return m.ip; }, "Row of GATE_UP where the up projection starts.")
      .def("save", [](Model& m, const std::string& path, const std::string& key) {
        nb::gil_scoped_release release;
        m.save(path, key);
      }, "Write the packed weights to a file that `packed` can name later.")
      .def_prop_ro("mapped", &Model::mapped, "Whether the weights are a packed file's.")
      .def("weight_bytes", &Model::weight_bytes)
      .def("weights", [](nb::handle_t<Model> self) {
        Model& m = nb::cast<Model&>(self);
        return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(m.weights(), {m.weight_bytes()}, self);
      }, "All weights as bytes, in the order they lie in.");

  nb::class_<Form>(mod, "Form", "A cache form in numbers: see core.Layout.")
      .def("__init__", [](Form* self, int residual, int block, int key_bits, int value_bits, int group, int channels, int sinks, int window) {
        require(residual >= 0 && block >= 0 && sinks >= 0 && window >= 0, "a form's numbers must not be negative");
        auto known = [](int b) { return b == 2 || b == 3 || b == 4 || b == 8; };
        bool halves = key_bits == 16 && value_bits == 16, codes = known(key_bits) && known(value_bits), none = !key_bits && !value_bits;
        require(halves || codes || none, "a form keeps keys and values in 16 bits, or in 8, 4, 3 or 2, or drops them");
        require(!codes || (group >= 1 && group <= 256 && block % group == 0 && residual % group == 0), "group must divide block and residual, and be at most 256");
        require(!codes || (channels >= 1 && channels <= 1024), "channels must be between 1 and 1024");
        Form f;
        f.residual = residual;
        f.block = block;
        f.coded = !none;
        if (!none) f.coding = Coding{key_bits, value_bits, codes ? group : PANEL, codes ? channels : 1};
        f.sinks = sinks;
        f.window = window;
        new (self) Form(f);
      }, nb::kw_only(), "residual"_a, "block"_a, "key_bits"_a, "value_bits"_a, "group"_a, "channels"_a, "sinks"_a, "window"_a)
      .def("due", &Form::due);

  nb::class_<Session>(mod, "Session")
      .def("__init__", [](Session* self, std::shared_ptr<Model> m, int rows, int capacity, std::optional<Form> form, bool poison) {
        require(!form || !form->coded || m->c.head_dim % form->coding.channels == 0, "channels must divide the head width");
        new (self) Session(std::move(m), rows, capacity, form.value_or(Form()), poison);
      }, "model"_a, "rows"_a, "capacity"_a, "form"_a.none(), "poison"_a)
      .def("fork", [](Session& s, const std::vector<int>& rows) { return s.fork(rows); })
      .def("prefill", &prefill)
      .def("forward", &forward, "tokens"_a.noconvert(), "parents"_a.noconvert(), "positions"_a.noconvert().none(), "visible"_a.noconvert().none(),
           "embeds"_a.noconvert().none(), "low"_a, "high"_a, "logits"_a, "hidden"_a)
      .def("commit", &Session::commit, nb::call_guard<nb::gil_scoped_release>())
      .def("crop", &Session::crop, nb::call_guard<nb::gil_scoped_release>())
      .def("logits", &logits)
      .def("best", &best)
      .def("hidden", &hidden)
      .def("top", &top)
      .def("head", &head)
      .def("kept", &kept, "row"_a, "layer"_a, "start"_a = 0, "stop"_a = nb::none(),
           "Keys and values a row holds of a layer, [G, T, D] each, in slots [start, stop); NaN where a token was dropped.")
      .def("append", &append, "row"_a, "keys"_a.noconvert(), "values"_a.noconvert(), "Commit tokens whose keys and values [L, G, T, D] are known.")
      .def("sealed", [](Session& s, int row) {
        require(row >= 0 && row < s.rows(), "sealed: no such row");
        return s.sealed(row);
      }, "Tokens of a row that have left the open ones.")
      .def("codes", &codes, "The sealed tokens of a row as they lie.")
      .def("restore", &restore, "row"_a, "sealed"_a, "codes"_a.noconvert(), "Put `codes` back: the first `sealed` tokens of an empty row.")
      .def("cache_bytes", [](Session& s) {
        CacheBytes b = s.cache_bytes();
        return nb::make_tuple(b.payload, b.scales, b.open, s.staging_bytes());
      }, "Payload, scales, open tokens, staging.")
      .def_prop_ro("serial", [](Session& s) { return s.serial; })
      .def_prop_ro("rows", &Session::rows)
      .def_ro("capacity", &Session::capacity)
      .def_prop_ro("room", [](Session& s) {
        std::vector<int> out;
        for (int b = 0; b < s.rows(); b++) out.push_back(s.form().room(s.length(b), s.capacity - s.length(b)));
        return out;
      })
      .def_prop_ro("seals", [](Session& s) { return s.form().block > 0; }, "Tokens leave the open ones within the capacity.")
      .def_prop_ro("windowed", [](Session& s) {
        bool any = s.form().window > 0;
        for (int w : s.model->c.windows) any = any || w;
        return any;
      }, "Queries do not see all.")
      .def_prop_ro("lengths", [](Session& s) {
        nb::object t = nb::steal(PyTuple_New(s.rows()));
        for (int b = 0; b < s.rows(); b++) PyTuple_SET_ITEM(t.ptr(), b, PyLong_FromLong(s.length(b)));
        return t;
      });
}

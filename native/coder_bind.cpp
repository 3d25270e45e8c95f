// Python's view of the coder, private to steno.codecs; a module of its own, because codecs may not see the models.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "coder.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace steno::coder;

namespace {

template <class T, size_t N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Scores = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;
template <class T, size_t N>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<N>>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <class T, size_t N>
Out<T, N> fresh(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  T* data = new T[n ? n : 1];
  return Out<T, N>(data, N, shape.begin(), nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); }));
}

template <class T>
std::vector<T> copy(const In<T, 1>& a) {
  return std::vector<T>(a.data(), a.data() + a.shape(0));
}

void fits(const Chunk& c, const Scores& s, const In<int32_t, 2>& ids) {
  require((int)s.shape(0) == c.lanes && (int)s.shape(2) == c.vocab, "scores: must be [lanes, width, vocabulary]");
  require((int)ids.shape(0) == c.lanes && ids.shape(1) == s.shape(1), "ids: must be [lanes, width]");
  require(s.stride(2) == 1, "scores: the vocabulary must be contiguous");
}

}  // namespace

NB_MODULE(_coder, mod) {
  nb::set_leak_warnings(false);

  nb::class_<Tables>(mod, "Tables")
      .def("__init__", [](Tables* self, In<uint32_t, 1> exp, In<int32_t, 1> ln, In<int32_t, 1> logistic, In<uint8_t, 1> after,
                          In<uint8_t, 1> total, In<uint16_t, 1> guess) {
        require(exp.shape(0) >= 2 && exp.shape(0) <= 1024 && ln.shape(0) == 2049 && logistic.shape(0) == 2 * ODDS + 1, "tables: wrong sizes");
        require(after.shape(0) == 512 && total.shape(0) == 256 && guess.shape(0) == 256, "tables: histories have 256 states");
        new (self) Tables{copy(exp), copy(ln), copy(logistic), copy(after), copy(total), copy(guess), {}};
        self->finish();
      });

  mod.def("frequencies", [](const Tables& t, In<float, 2> scores, int bits) {
    size_t n = scores.shape(0), v = scores.shape(1);
    require(v >= 1 && bits >= 1 && bits <= 30 && v < ((size_t)1 << bits), "frequencies: the vocabulary must fit into 1 << bits");
    auto out = fresh<uint32_t, 2>({n, v});
    std::vector<uint16_t> steps(v);
    nb::gil_scoped_release release;
    for (size_t i = 0; i < n; i++) frequencies(t, scores.data() + i * v, (int)v, bits, nullptr, steps.data(), out.data() + i * v);
    return out;
  });

  nb::class_<RangeEncoder>(mod, "RangeEncoder")
      .def(nb::init<>())
      .def("encode", [](RangeEncoder& e, uint32_t low, uint32_t freq, int bits) {
        require(bits >= 1 && bits <= 24 && freq >= 1 && (uint64_t)low + freq <= (uint64_t)1 << bits, "encode: low + freq must lie within 1 << bits");
        e.encode(low, freq, bits);
      })
      .def("finish", [](RangeEncoder& e) {
        auto out = e.finish();
        return nb::bytes((const char*)out.data(), out.size());
      });
  nb::class_<RangeDecoder>(mod, "RangeDecoder")
      .def("__init__", [](RangeDecoder* self, nb::bytes data) { new (self) RangeDecoder((const uint8_t*)data.c_str(), data.size()); })
      .def("target", [](RangeDecoder& d, int bits) {
        require(bits >= 1 && bits <= 24, "target: bits between 1 and 24");
        return d.target(bits);
      })
      .def("consume", [](RangeDecoder& d, uint32_t low, uint32_t freq, int bits) {
        require(bits >= 1 && bits <= 24 && freq >= 1 && (uint64_t)low + freq <= (uint64_t)1 << bits, "consume: low + freq must lie within 1 << bits");
        d.consume(low, freq, bits);
      })
      .def_prop_ro("overrun", &RangeDecoder::overrun);

  nb::class_<Chunk>(mod, "Chunk")
      .def("__init__", [](Chunk* self, std::shared_ptr<Tables> tables, In<int32_t, 1> places, int lanes, int64_t symbols, bool adapt) {
        int v = (int)places.shape(0);
        require(v >= 2 && v <= 1 << 24, "places: one per symbol, 2 to 2^24 symbols");
        require(lanes >= 1 && symbols >= 0 && symbols < (int64_t)1 << 31, "a chunk has one lane or more and fewer than 2^31 symbols");
        std::vector<bool> seen(v);
        for (int i = 0; i < v; i++) {
          int p = places.data()[i];
          require(p >= 0 && p < v && !seen[p], "places: must be a permutation");
          seen[p] = true;
        }
        new (self) Chunk(std::move(tables), v, copy(places), lanes, symbols, adapt);
      }, "tables"_a, "places"_a, "lanes"_a, "symbols"_a, "adapt"_a)
      .def("encode", [](Chunk& c, Scores scores, In<int32_t, 2> ids) {
        fits(c, scores, ids);
        for (size_t i = 0; i < ids.size(); i++) require(ids.data()[i] >= 0 && ids.data()[i] < c.vocab, "ids: outside the vocabulary");
        nb::gil_scoped_release release;
        c.encode(scores.data(), scores.stride(0), scores.stride(1), ids.data(), (int)ids.shape(1));
      }, "scores"_a, "ids"_a)
      .def("encode_flat", [](Chunk& c, In<int32_t, 2> ids) {
        require((int)ids.shape(0) == c.lanes, "ids: must be [lanes, width]");
        for (size_t i = 0; i < ids.size(); i++) require(ids.data()[i] >= 0 && ids.data()[i] < c.vocab, "ids: outside the vocabulary");
        nb::gil_scoped_release release;
        c.encode(nullptr, 0, 0, ids.data(), (int)ids.shape(1));
      }, "ids"_a)
      .def("decode_flat", [](Chunk& c, int width) {
        require(width >= 0, "decode_flat: width must not be negative");
        auto out = fresh<int32_t, 2>({(size_t)c.lanes, (size_t)width});
        std::fill(out.data(), out.data() + (size_t)c.lanes * width, -1);
        nb::gil_scoped_release release;
        c.decode(nullptr, 0, 0, nullptr, nullptr, width, out.data());
        return out;
      }, "width"_a)
      .def("finish", [](Chunk& c) {
        auto out = c.finish();
        return nb::bytes((const char*)out.data(), out.size());
      })
      .def("open", [](Chunk& c, nb::bytes data) { c.open((const uint8_t*)data.c_str(), data.size()); })
      .def("decode", [](Chunk& c, Scores scores, In<int32_t, 2> tokens, In<int32_t, 1> counts) {
        fits(c, scores, tokens);
        require((int)counts.shape(0) == c.lanes, "counts: one per lane");
        size_t width = tokens.shape(1);
        auto out = fresh<int32_t, 2>({(size_t)c.lanes, width});
        std::fill(out.data(), out.data() + c.lanes * width, -1);
        int steps;
        {
          nb::gil_scoped_release release;
          steps = c.decode(scores.data(), scores.stride(0), scores.stride(1), tokens.data(), counts.data(), (int)width, out.data());
        }
        return nb::make_tuple(steps, out);
      }, "scores"_a, "tokens"_a, "counts"_a)
      .def("draft", [](const Chunk& c, int width) {
        require(width >= 0, "draft: width must not be negative");
        auto out = fresh<int32_t, 2>({(size_t)c.lanes, (size_t)width});
        c.draft(width, out.data());
        return out;
      })
      .def_prop_ro("steps", &Chunk::taken)
      .def_prop_ro("per_lane", &Chunk::per_lane)
      .def_prop_ro("overrun", &Chunk::overrun);
}

// The row codec: conversions against their definition, and both layouts against a plain list of rows.
#include "support.h"

#include <dlfcn.h>

#include <algorithm>

namespace kvasir_test {

namespace {

float from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// the nearest f16 of x, by search over all of them; ties to the even mantissa
uint16_t nearest_half(float x) {
    if (std::isnan(x)) {
        return 0x7e00;
    }
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const double a = std::fabs((double) x);
    uint16_t lo = 0, hi = 0x7c00; // infinity stands for 65536
    const auto value = [](uint16_t h) { return h == 0x7c00 ? 65536.0 : half_value(h); };
    if (a >= 65536.0) {
        return sign | 0x7c00;
    }
    while (hi - lo > 1) {
        const uint16_t mid = (uint16_t) ((lo + hi) / 2);
        (value(mid) <= a ? lo : hi) = mid;
    }
    const double down = a - value(lo), up = value(hi) - a;
    return sign | (down < up || (down == up && lo % 2 == 0) ? lo : hi);
}

void conversions(std::mt19937_64 & rng) {
    const row_format f16 = rows_format(GGML_TYPE_F16, 1, false), bf16 = rows_format(GGML_TYPE_BF16, 1, false);
    const int n = quick ? 20000 : 300000;
    for (int i = 0; i < n; i++) {
        // all exponents, and many values half way between two f16
        uint32_t u = (uint32_t) rng();
        if (i % 3 == 0) {
            u = (u & 0x80000000) | ((100 + u % 50) << 23) | (u & 0x7fe000) | 0x1000;
        } else if (i % 3 == 1) {
            u = (u & 0x807fffff) | ((100 + u % 50) << 23);
        }
        const float x = from_bits(u);
        uint16_t h, b;
        rows_write(f16, (char *) &h, 0, &x);
        rows_write(bf16, (char *) &b, 0, &x);
        if (std::isnan(x)) {
            CHECK(std::isnan(half_value(h)) && std::isnan(bf16_value(b)), "%s: %08x", cpu_kernels_name(), u);
            continue;
        }
        CHECK(h == nearest_half(x), "%s: f16 of %g (%08x) is %04x, expected %04x", cpu_kernels_name(), x, u, h, nearest_half(x));
        const double half_step = std::ldexp(1.0, std::max(std::ilogb(x == 0 ? 1e-38f : x), -126) - 8);
        CHECK(std::fabs(bf16_value(b) - (double) x) <= half_step || std::isinf(bf16_value(b)), "%s: bf16 of %g is %04x", cpu_kernels_name(), x, b);
    }
    for (uint32_t h = 0; h < 65536; h++) {
        const uint16_t x = (uint16_t) h;
        float y, z;
        rows_read(f16, (const char *) &x, 0, &y);
        rows_read(bf16, (const char *) &x, 0, &z);
        const bool same = std::isnan(half_value(x)) ? std::isnan(y) : (double) y == half_value(x);
        CHECK(same, "%s: %04x is read as %g", cpu_kernels_name(), h, y);
        CHECK(std::isnan(bf16_value(x)) ? std::isnan(z) : (double) z == bf16_value(x), "%s: bf16 %04x is read as %g", cpu_kernels_name(), h, z);
    }
}

// a head's side beside a plain list of rows in ggml's layout
void layout(ggml_type type, int32_t dim, bool tiled, std::mt19937_64 & rng) {
    const row_format f = rows_format(type, dim, tiled);
    const int32_t capacity = 1 + (int32_t) (rng() % 200);
    guarded memory(rows_bytes(f, capacity), rng() % 2), row(f.row_bytes, true);
    char * base = memory.data();
    std::vector<std::vector<char>> expected;
    const auto check = [&](const char * what) {
        for (size_t i = 0; i < expected.size(); i++) {
            rows_get(f, base, (int32_t) i, row.data());
            CHECK(memcmp(row.data(), expected[i].data(), f.row_bytes) == 0, "%s %s tiled=%d dim=%d: slot %zu of %zu", what, type_name(type), tiled, dim, i, expected.size());
        }
    };
    for (int32_t i = 0; i < capacity; i++) {
        expected.emplace_back(f.row_bytes);
        random_row(type, dim, expected.back().data(), rng);
        rows_set(f, base, i, expected.back().data());
    }
    check("set");

    guarded floats((size_t) dim * 4, true);
    for (int32_t i = 0; i < capacity; i++) {
        rows_read(f, base, i, floats.as<float>());
        for (int32_t d = 0; d < dim; d++) {
            const double x = row_value(type, expected[i].data(), d); // a product and a sum in f32
            CHECK(std::fabs(floats.as<float>()[d] - x) <= std::fabs(x) * 0x1p-22 + 0x1p-22, "read %s tiled=%d slot %d element %d: %g, expected %g", type_name(type), tiled, i, d, floats.as<float>()[d], x);
        }
        if (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) { // exact both ways
            rows_write(f, base, i, floats.as<float>());
        }
    }
    check("write");

    for (int i = 0; i < 20; i++) {
        const int32_t from = (int32_t) (rng() % capacity), to = (int32_t) (rng() % capacity);
        rows_move(f, base, from, to);
        expected[to] = expected[from];
    }
    check("move");

    std::vector<int32_t> some;
    for (int32_t i = 0; i < capacity; i++) {
        if (rng() % 3) {
            some.push_back(i);
        }
    }
    guarded gathered(some.size() * f.row_bytes, true);
    rows_gather(f, base, some.data(), 0, (int32_t) some.size(), gathered.data());
    for (size_t i = 0; i < some.size(); i++) {
        CHECK(memcmp(gathered.data() + i * f.row_bytes, expected[some[i]].data(), f.row_bytes) == 0, "gather %s tiled=%d", type_name(type), tiled);
    }
    const int32_t first = (int32_t) (rng() % capacity), n = (int32_t) (rng() % (capacity - first + 1));
    guarded range(n * f.row_bytes, true);
    rows_gather(f, base, nullptr, first, n, range.data());
    for (int32_t i = 0; i < n; i++) {
        CHECK(memcmp(range.data() + i * f.row_bytes, expected[first + i].data(), f.row_bytes) == 0, "gather %s tiled=%d", type_name(type), tiled);
    }

    while (expected.size() > 1) { // random subsets, then runs
        std::vector<int32_t> slots;
        const int kind = (int) (rng() % 3);
        const int32_t shift = (int32_t) (rng() % std::min<size_t>(expected.size(), 40));
        for (int32_t i = 0; i < (int32_t) expected.size(); i++) {
            if (kind == 0 ? rng() % 4 != 0 : kind == 1 ? i >= shift : i < 4 || i % 48 >= 16) {
                slots.push_back(i);
            }
        }
        if (slots.size() == expected.size()) {
            slots.pop_back();
        }
        rows_keep(f, base, slots.data(), (int32_t) slots.size());
        std::vector<std::vector<char>> kept;
        for (int32_t i : slots) {
            kept.push_back(expected[i]);
        }
        expected = kept;
        check("keep");
    }
}

// ggml's own functions, when KVASIR_GGML_LIBRARY names its library of quantised types
void against_ggml(std::mt19937_64 & rng) {
    const char * path = getenv("KVASIR_GGML_LIBRARY");
    if (!path) {
        printf("rows      KVASIR_GGML_LIBRARY is not set: not compared with ggml's functions\n");
        return;
    }
    void * lib = dlopen(path, RTLD_NOW);
    CHECK(lib, "%s", dlerror());
    const auto traits = (const ggml_type_traits * (*)(ggml_type)) dlsym(lib, "ggml_get_type_traits");
    const auto row_size = (size_t (*)(ggml_type, int64_t)) dlsym(lib, "ggml_row_size");
    CHECK(traits && row_size, "symbols of ggml");
    for (ggml_type type : all_types) {
        const int32_t dim = 128;
        const row_format f = rows_format(type, dim, false);
        CHECK(f.row_bytes == row_size(type, dim), "%s: %zu bytes", type_name(type), f.row_bytes);
        std::vector<char> row(f.row_bytes), again(f.row_bytes);
        float own[dim], theirs[dim];
        for (int i = 0; i < 200; i++) {
            random_row(type, dim, row.data(), rng);
            rows_set_functions(type, {});
            rows_read(f, row.data(), 0, own);
            traits(type)->to_float(row.data(), theirs, dim);
            for (int32_t d = 0; d < dim; d++) {
                CHECK(std::fabs(own[d] - theirs[d]) <= std::fabs(theirs[d]) * 0x1p-22 + 0x1p-22, "%s %s element %d: %g, ggml %g", cpu_kernels_name(), type_name(type), d, own[d], theirs[d]);
            }
            rows_set_functions(type, { traits(type)->from_float_ref ? (void (*)(const float *, void *, int64_t)) traits(type)->from_float_ref : nullptr, traits(type)->to_float });
            rows_write(f, row.data(), 0, theirs);
            traits(type)->from_float_ref(theirs, again.data(), dim);
            CHECK(memcmp(row.data(), again.data(), f.row_bytes) == 0, "%s %s written", cpu_kernels_name(), type_name(type));
            rows_set_functions(type, {});
        }
    }
}

} // namespace

void test_rows() {
    for (const std::string & name : instruction_sets()) {
        cpu_kernels_select(name.c_str());
        std::mt19937_64 rng(seed);
        conversions(rng);
        for (ggml_type type : all_types) {
            for (int32_t dim : { 32, 64, 96, 128, 576, 40, 17, 1 }) {
                if (!rows_supports(type, dim)) {
                    continue;
                }
                for (bool tiled : { false, true }) {
                    if (tiled == rows_format(type, dim, tiled).tiled) {
                        layout(type, dim, tiled, rng);
                    }
                }
            }
        }
        against_ggml(rng);
        printf("rows      %s\n", name.c_str());
    }
}

} // namespace kvasir_test

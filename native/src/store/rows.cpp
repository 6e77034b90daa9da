#include "rows.h"

#include "../attention/cpu/kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace kvasir {

static row_functions functions[GGML_TYPE_COUNT];

static size_t tile_bytes(const row_format & f) { return (size_t) f.dim * rows_tile * sizeof(uint16_t); }

// element d of a slot is at [d * rows_tile]
static uint16_t * tiled_row(const row_format & f, char * base, int32_t slot) {
    return (uint16_t *) (base + (size_t) (slot / rows_tile) * tile_bytes(f)) + slot % rows_tile;
}
static const uint16_t * tiled_row(const row_format & f, const char * base, int32_t slot) {
    return (const uint16_t *) (base + (size_t) (slot / rows_tile) * tile_bytes(f)) + slot % rows_tile;
}

static void to_halves(ggml_type type, const float * src, uint16_t * dst, int32_t n) {
    if (type == GGML_TYPE_F16) {
        cpu_kernels_active().f32_to_f16(src, dst, n);
    } else {
        cpu_kernels_active().f32_to_bf16(src, dst, n);
    }
}

static constexpr int32_t chunk = 64; // elements converted at once

void rows_set_functions(ggml_type type, const row_functions & f) { functions[type] = f; }

bool rows_supports(ggml_type type, int32_t dim) {
    switch (type) {
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16: return dim > 0;
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1: return dim > 0 && dim % 32 == 0;
        default: return false;
    }
}

row_format rows_format(ggml_type type, int32_t dim, bool tiled) {
    size_t bytes = 0;
    switch (type) { // ggml-common.h: bytes of a block of 32
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16: bytes = (size_t) dim * 2; break;
        case GGML_TYPE_Q8_0: bytes = (size_t) dim / 32 * 34; break;
        case GGML_TYPE_Q4_0: bytes = (size_t) dim / 32 * 18; break;
        case GGML_TYPE_Q4_1: bytes = (size_t) dim / 32 * 20; break;
        case GGML_TYPE_Q5_0: bytes = (size_t) dim / 32 * 22; break;
        case GGML_TYPE_Q5_1: bytes = (size_t) dim / 32 * 24; break;
        default: break;
    }
    return { type, dim, bytes, tiled && (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) };
}

row_format rows_part(const row_format & k, int32_t dim) { return { k.type, dim, k.row_bytes, false, true }; }

size_t rows_bytes(const row_format & f, int32_t n) {
    return f.tiled ? (size_t) ((n + rows_tile - 1) / rows_tile) * tile_bytes(f) : (size_t) n * own_bytes(f);
}

int32_t rows_fitting(const row_format & f, size_t bytes) {
    return f.part ? INT32_MAX : (int32_t) (f.tiled ? bytes / tile_bytes(f) * rows_tile : bytes / f.row_bytes);
}

void rows_write(const row_format & f, char * base, int32_t slot, const float * src) {
    if (f.tiled) {
        uint16_t * dst = tiled_row(f, base, slot);
        for (int32_t d = 0; d < f.dim; d += chunk) {
            uint16_t x[chunk];
            const int32_t n = f.dim - d < chunk ? f.dim - d : chunk;
            to_halves(f.type, src + d, x, n);
            for (int32_t i = 0; i < n; i++) {
                dst[(size_t) (d + i) * rows_tile] = x[i];
            }
        }
        return;
    }
    char * dst = base + (size_t) slot * f.row_bytes;
    if (f.type == GGML_TYPE_F16 || f.type == GGML_TYPE_BF16) {
        to_halves(f.type, src, (uint16_t *) dst, f.dim);
    } else {
        functions[f.type].from_float(src, dst, f.dim);
    }
}

void rows_read(const row_format & f, const char * base, int32_t slot, float * dst) {
    if (f.tiled) {
        const uint16_t * src = tiled_row(f, base, slot);
        for (int32_t d = 0; d < f.dim; d += chunk) {
            uint16_t x[chunk];
            const int32_t n = f.dim - d < chunk ? f.dim - d : chunk;
            for (int32_t i = 0; i < n; i++) {
                x[i] = src[(size_t) (d + i) * rows_tile];
            }
            cpu_kernels_active().rows_to_f32(f.type, (const char *) x, 0, 1, n, dst + d, 0);
        }
        return;
    }
    const char * src = base + (size_t) slot * f.row_bytes;
    if (functions[f.type].to_float) {
        functions[f.type].to_float(src, dst, f.dim);
    } else {
        cpu_kernels_active().rows_to_f32(f.type, src, f.row_bytes, 1, f.dim, dst, f.dim);
    }
}

void rows_norms(const row_format & f, const char * rows, int32_t n, float * norms) {
    row_format untiled = f;
    untiled.tiled = false;
    std::vector<float> values((size_t) f.dim);
    for (int32_t i = 0; i < n; i++) {
        rows_read(untiled, rows, i, values.data());
        double sum = 0;
        for (float x : values) {
            sum += (double) x * x;
        }
        norms[i] = (float) std::sqrt(sum);
    }
}

void rows_get(const row_format & f, const char * base, int32_t slot, char * dst) {
    if (!f.tiled) {
        memcpy(dst, base + (size_t) slot * f.row_bytes, f.row_bytes);
        return;
    }
    const uint16_t * src = tiled_row(f, base, slot);
    for (int32_t d = 0; d < f.dim; d++) {
        memcpy(dst + (size_t) d * 2, src + (size_t) d * rows_tile, 2);
    }
}

void rows_set(const row_format & f, char * base, int32_t slot, const char * src) {
    if (!f.tiled) {
        memcpy(base + (size_t) slot * f.row_bytes, src, f.row_bytes);
        return;
    }
    uint16_t * dst = tiled_row(f, base, slot);
    for (int32_t d = 0; d < f.dim; d++) {
        memcpy(dst + (size_t) d * rows_tile, src + (size_t) d * 2, 2);
    }
}

void rows_gather(const row_format & f, const char * base, const int32_t * slots, int32_t first, int32_t n, char * dst) {
    if (!f.tiled && !slots) {
        memcpy(dst, base + (size_t) first * f.row_bytes, (size_t) n * f.row_bytes);
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        rows_get(f, base, slots ? slots[i] : first + i, dst + (size_t) i * f.row_bytes);
    }
}

void rows_move(const row_format & f, char * base, int32_t from, int32_t to) {
    if (from == to || f.part) {
        return;
    }
    if (!f.tiled) {
        memcpy(base + (size_t) to * f.row_bytes, base + (size_t) from * f.row_bytes, f.row_bytes);
        return;
    }
    const uint16_t * src = tiled_row(f, base, from);
    uint16_t * dst = tiled_row(f, base, to);
    for (int32_t d = 0; d < f.dim; d++, src += rows_tile, dst += rows_tile) {
        *dst = *src;
    }
}

// a whole tile is rebuilt at once: reading and writing go through memory in order
static void keep_tiled(const row_format & f, char * base, const int32_t * slots, int32_t from, int32_t n) {
    for (int32_t t = from / rows_tile * rows_tile; t < n; t += rows_tile) {
        const int32_t count = n - t < rows_tile ? n - t : rows_tile;
        if (count == rows_tile && slots[t] % rows_tile == 0 && slots[t + count - 1] - slots[t] == count - 1) {
            memmove(base + (size_t) (t / rows_tile) * tile_bytes(f), base + (size_t) (slots[t] / rows_tile) * tile_bytes(f), tile_bytes(f));
            continue;
        }
        const uint16_t * src[rows_tile];
        for (int32_t i = 0; i < rows_tile; i++) {
            src[i] = tiled_row(f, base, slots[t + (i < count ? i : count - 1)]);
        }
        // ascending distinct slots: slots[t + i] >= t + i, so only the tile itself can still be read while it is written,
        // and of that only elements d that have not been passed
        uint16_t * dst = tiled_row(f, base, t);
        for (int32_t d = 0; d < f.dim; d++, dst += rows_tile) {
            uint16_t x[rows_tile];
            for (int32_t i = 0; i < rows_tile; i++) {
                x[i] = src[i][(size_t) d * rows_tile];
            }
            memcpy(dst, x, sizeof x);
        }
    }
}

void rows_keep(const row_format & f, char * base, const int32_t * slots, int32_t n) {
    int32_t i = 0;
    while (i < n && slots[i] == i) { // what is in front of the first gap stays
        i++;
    }
    if (i == n || f.part) {
        return;
    }
    if (f.tiled) {
        keep_tiled(f, base, slots, i, n);
        return;
    }
    while (i < n) {
        int32_t run = 1;
        while (i + run < n && slots[i + run] == slots[i] + run) {
            run++;
        }
        memmove(base + (size_t) i * f.row_bytes, base + (size_t) slots[i] * f.row_bytes, (size_t) run * f.row_bytes);
        i += run;
    }
}

} // namespace kvasir

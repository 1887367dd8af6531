/* Group norm, a scale and a shift for each image and channel, and SiLU, in one operation: forward and backward.

   z = (x - mean) rstd weight (1 + scale) + bias (1 + scale) + shift,     y = z sigmoid(z) or z

   x and y are channels-last, [batch][pixels][channels], in float32 or bfloat16; everything else is float32. Pixels are
   cut into chunks whose size depends on the shape alone, and their sums are added in order, so that results depend
   neither on the number of threads nor on the other images of the batch.

   It is loaded by ctypes and finds OpenMP in the library that PyTorch brought along: a second one in the same process
   would compete with it for the cores. */

#include <math.h>

#include "vectors.h"

ALWAYS vf sigmoid_f32(vf z) { return 1.0f / (1.0f + exp_minus(z, 0)); }

/* Results in bfloat16 are rounded to 4e-3, so that less will do. */
ALWAYS vf sigmoid_bf16(vf z)
{
    vf d = 1.0f + exp_minus(z, 1);
#ifdef __AVX512F__
    return (vf)_mm512_rcp14_ps((__m512)d);
#else
    return 1.0f / d;
#endif
}

/* Pixels of a chunk: of about 16,384 numbers, that is 64 KiB in float32. */
ALWAYS int64_t chunk_pixels(int64_t channels)
{
    int64_t rows = 16384 / channels;
    return rows < 8 ? 8 : rows;
}

ALWAYS int64_t chunk_count(int64_t pixels, int64_t channels)
{
    int64_t rows = chunk_pixels(channels);
    return (pixels + rows - 1) / rows;
}

/* The factor and the summand of z = x a + s for the channels of one group of one image. */
static void coefficients(float *a, float *s, const float *weight, const float *bias, const float *scale,
                         const float *shift, float mean, float rstd, int64_t from, int64_t to)
{
    for (int64_t c = from; c < to; c++) {
        float k = scale ? 1.0f + scale[c] : 1.0f, w = rstd * weight[c];
        a[c] = w * k;
        s[c] = (bias[c] - mean * w) * k + (shift ? shift[c] : 0.0f);
    }
}

/* A group's mean and 1 / standard deviation, from sums of differences to each channel's first number. */
static void moments(float *mean, float *rstd, const float *sums, const float *first, int64_t chunks, int64_t pixels,
                    int64_t channels, int64_t group, int64_t size, float eps)
{
    double total = 0, spread = 0, between = 0, share = 1.0 / (double)pixels;
    for (int64_t c = group * size; c < (group + 1) * size; c++) {
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < chunks; k++) {
            sum += sums[2 * k * channels + c];
            squares += sums[(2 * k + 1) * channels + c];
        }
        double centre = first[c] + sum * share;
        total += centre;
        between += centre * centre;
        spread += squares - sum * sum * share;
    }
    double centre = total / size;
    double variance = (spread * share + between - size * centre * centre) / size;
    *mean = (float)centre;
    *rstd = (float)(1.0 / sqrt((variance > 0 ? variance : variance == variance ? 0 : variance) + eps));
}

/* Mean, 1 / standard deviation, factors and summands of the groups [from, to) of an image, from its sums in `mine`. */
static void all_moments(float *mean, float *rstd, float *mine, const float *weight, const float *bias,
                        const float *scale, const float *shift, int64_t first, int64_t from, int64_t to, int64_t chunks,
                        int64_t pixels, int64_t channels, int64_t size, float eps)
{
    for (int64_t group = from; group < to; group++) {
        float *m = mean + first + group, *r = rstd + first + group;
        moments(m, r, mine + 3 * channels, mine, chunks, pixels, channels, group, size, eps);
        coefficients(mine + channels, mine + 2 * channels, weight, bias, scale, shift, *m, *r, group * size,
                     (group + 1) * size);
    }
}

#define KERNELS(NAME, TYPE, LOAD, STORE)                                                                               \
                                                                                                                       \
    /* Sums over a chunk of x - first and of its square, for W channels a time. */                                     \
    static void sums_##NAME(const TYPE *x, const float *first, float *out, int64_t rows, int64_t channels)             \
    {                                                                                                                  \
        for (int64_t c = 0; c < channels; c += W) {                                                                    \
            vf k = load_f32(first + c), s0 = all(0), s1 = all(0), q0 = all(0), q1 = all(0);                            \
            int64_t r = 0;                                                                                             \
            for (; r + 1 < rows; r += 2) {                                                                             \
                vf d0 = LOAD(x + r * channels + c) - k, d1 = LOAD(x + (r + 1) * channels + c) - k;                     \
                s0 += d0, q0 += d0 * d0, s1 += d1, q1 += d1 * d1;                                                      \
            }                                                                                                          \
            if (r < rows) {                                                                                            \
                vf d0 = LOAD(x + r * channels + c) - k;                                                                \
                s0 += d0, q0 += d0 * d0;                                                                               \
            }                                                                                                          \
            store_f32(out + c, s0 + s1);                                                                               \
            store_f32(out + channels + c, q0 + q1);                                                                    \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static void apply_##NAME(const TYPE *x, TYPE *y, const float *a, const float *s, int64_t rows, int64_t channels,   \
                             int act)                                                                                  \
    {                                                                                                                  \
        for (int64_t r = 0; r < rows; r++, x += channels, y += channels)                                               \
            for (int64_t c = 0; c < channels; c += W) {                                                                \
                vf z = LOAD(x + c) * load_f32(a + c) + load_f32(s + c);                                                \
                STORE(y + c, act ? z * sigmoid_##NAME(z) : z);                                                                \
            }                                                                                                          \
    }                                                                                                                  \
                                                                                                                       \
    /* The sums of chunks [from, to) of an image; the first one also notes what they are differences to. */            \
    static void part_sums_##NAME(const TYPE *x, float *mine, int64_t from, int64_t to, int64_t pixels, int64_t channels)\
    {                                                                                                                  \
        int64_t most = chunk_pixels(channels);                                                                         \
        float own[channels];                                                                                           \
        for (int64_t c = 0; c < channels; c += W) store_f32(own + c, LOAD(x + c));                                     \
        if (from == 0) memcpy(mine, own, sizeof own);                                                                  \
        for (int64_t k = from; k < to; k++) {                                                                          \
            int64_t first = k * most, rows = pixels - first < most ? pixels - first : most;                            \
            sums_##NAME(x + first * channels, own, mine + (3 + 2 * k) * channels, rows, channels);                     \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* The results of chunks [from, to) of an image. */                                                                \
    static void part_apply_##NAME(const TYPE *x, TYPE *y, const float *mine, int64_t from, int64_t to, int64_t pixels, \
                                  int64_t channels, int act)                                                           \
    {                                                                                                                  \
        int64_t most = chunk_pixels(channels), first = from * most, last = to * most < pixels ? to * most : pixels;    \
        const float *a = mine + channels;                                                                              \
        apply_##NAME(x + first * channels, y + first * channels, a, a + channels, last - first, channels, act);        \
    }                                                                                                                  \
                                                                                                                       \
    /* x [batch][pixels][channels] -> y, mean and rstd [batch][groups]. scale, shift: rows of `stride` or null.        \
       work: batch * (2 * chunks + 3) * channels floats. An image that one thread has to itself is done at once, while \
       it lies in the cache. */                                                                                        \
    void undiffuse_forward_##NAME(const TYPE *x, TYPE *y, const float *weight, const float *bias, const float *scale,  \
                                  const float *shift, int64_t stride, float *mean, float *rstd, float *work,           \
                                  int64_t batch, int64_t pixels, int64_t channels, int64_t groups, float eps, int act, \
                                  int threads)                                                                         \
    {                                                                                                                  \
        int64_t size = channels / groups, chunks = chunk_count(pixels, channels);                                      \
        int64_t plane = pixels * channels, need = (2 * chunks + 3) * channels;                                         \
        if (batch * plane < 16384) threads = 1;                                                                        \
        int64_t parts = batch % threads == 0 || batch >= 4 * threads ? 1 : chunks; /* into which an image is cut */    \
        int64_t each = chunks / parts;                                                                                 \
        _Pragma("omp parallel num_threads(threads)")                                                                   \
        {                                                                                                              \
            _Pragma("omp for schedule(static)") for (int64_t i = 0; i < batch * parts; i++)                            \
            {                                                                                                          \
                int64_t b = i / parts, from = i % parts * each;                                                        \
                float *mine = work + b * need;                                                                         \
                part_sums_##NAME(x + b * plane, mine, from, from + each, pixels, channels);                            \
                if (parts > 1) continue;                                                                               \
                all_moments(mean, rstd, mine, weight, bias, scale ? scale + b * stride : 0,                            \
                            shift ? shift + b * stride : 0, b * groups, 0, groups, chunks, pixels, channels, size, eps);\
                part_apply_##NAME(x + b * plane, y + b * plane, mine, 0, chunks, pixels, channels, act);               \
            }                                                                                                          \
            if (parts > 1) {                                                                                           \
                _Pragma("omp for schedule(static)") for (int64_t i = 0; i < batch * groups; i++)                       \
                {                                                                                                      \
                    int64_t b = i / groups, group = i % groups;                                                        \
                    all_moments(mean, rstd, work + b * need, weight, bias, scale ? scale + b * stride : 0,             \
                                shift ? shift + b * stride : 0, b * groups, group, group + 1, chunks, pixels, channels,\
                                size, eps);                                                                            \
                }                                                                                                      \
                _Pragma("omp for schedule(static)") for (int64_t i = 0; i < batch * parts; i++)                        \
                {                                                                                                      \
                    int64_t b = i / parts, from = i % parts * each;                                                    \
                    part_apply_##NAME(x + b * plane, y + b * plane, work + b * need, from, from + each, pixels,        \
                                      channels, act);                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    ALWAYS vf slope_##NAME(vf x, vf g, vf a, vf s, int act)                                                            \
    {                                                                                                                  \
        if (!act) return g;                                                                                            \
        vf z = x * a + s, p = sigmoid_##NAME(z);                                                                        \
        return g * p * (1.0f + z * (1.0f - p));                                                                        \
    }                                                                                                                  \
                                                                                                                       \
    /* With the gradient g of y: gx, and for each image and channel the sums over pixels of dz ((x - mean) rstd) into  \
       gain [batch][channels] and of dz into offset. work: batch * (2 * chunks + 4) * channels floats. */              \
    void undiffuse_backward_##NAME(const TYPE *x, const TYPE *g, TYPE *gx, const float *weight, const float *bias,     \
                                   const float *scale, const float *shift, int64_t stride, const float *mean,          \
                                   const float *rstd, float *gain, float *offset, float *work, int64_t batch,          \
                                   int64_t pixels, int64_t channels, int64_t groups, int act, int threads)             \
    {                                                                                                                  \
        int64_t size = channels / groups, most = chunk_pixels(channels), chunks = chunk_count(pixels, channels);  \
        int64_t plane = pixels * channels, need = (2 * chunks + 4) * channels;                                         \
        if (batch * plane < 16384) threads = 1;                                                                        \
        _Pragma("omp parallel num_threads(threads)")                                                                   \
        {                                                                                                              \
            _Pragma("omp for schedule(static)") for (int64_t b = 0; b < batch; b++)                                    \
            {                                                                                                          \
                float *mine = work + b * need;                                                                         \
                for (int64_t i = b * groups, group = 0; group < groups; group++, i++) {                                \
                    coefficients(mine, mine + channels, weight, bias, scale ? scale + b * stride : 0,                  \
                                 shift ? shift + b * stride : 0, mean[i], rstd[i], group * size, (group + 1) * size);  \
                    for (int64_t c = group * size; c < (group + 1) * size; c++) mine[2 * channels + c] = mean[i];      \
                }                                                                                                      \
            }                                                                                                          \
            _Pragma("omp for schedule(static)") for (int64_t i = 0; i < batch * chunks; i++)                           \
            {                                                                                                          \
                int64_t b = i / chunks, k = i % chunks, from = k * most, at = b * plane + from * channels;             \
                int64_t rows = pixels - from < most ? pixels - from : most;                                            \
                float *mine = work + b * need, *out = mine + (4 + 2 * k) * channels;                                   \
                for (int64_t c = 0; c < channels; c += W) {                                                            \
                    vf a = load_f32(mine + c), s = load_f32(mine + channels + c);                                      \
                    vf m = load_f32(mine + 2 * channels + c), along = all(0), flat = all(0);                           \
                    for (int64_t r = 0; r < rows; r++) {                                                               \
                        vf v = LOAD(x + at + r * channels + c);                                                        \
                        vf d = slope_##NAME(v, LOAD(g + at + r * channels + c), a, s, act);                            \
                        flat += d, along += d * (v - m);                                                               \
                    }                                                                                                  \
                    store_f32(out + c, along);                                                                         \
                    store_f32(out + channels + c, flat);                                                               \
                }                                                                                                      \
            }                                                                                                          \
            _Pragma("omp for schedule(static)") for (int64_t i = 0; i < batch * groups; i++)                           \
            {                                                                                                          \
                int64_t b = i / groups, group = i % groups;                                                            \
                float *mine = work + b * need;                                                                         \
                double flat = 0, along = 0, r = rstd[i], count = (double)pixels * size;                                \
                for (int64_t c = group * size; c < (group + 1) * size; c++) {                                          \
                    double sum = 0, product = 0, k = weight[c] * (scale ? 1.0f + scale[b * stride + c] : 1.0f);        \
                    for (int64_t j = 0; j < chunks; j++) {                                                             \
                        product += mine[(4 + 2 * j) * channels + c];                                                   \
                        sum += mine[(5 + 2 * j) * channels + c];                                                       \
                    }                                                                                                  \
                    gain[b * channels + c] = (float)(product * r);                                                     \
                    offset[b * channels + c] = (float)sum;                                                             \
                    flat += k * sum, along += k * product * r;                                                         \
                }                                                                                                      \
                /* gx = a dz - (rstd / count) (flat + (x - mean) rstd along) */                                        \
                for (int64_t c = group * size; c < (group + 1) * size; c++) {                                          \
                    mine[4 * channels + c] = (float)(r * flat / count);                                                \
                    mine[5 * channels + c] = (float)(r * r * along / count);                                           \
                }                                                                                                      \
            }                                                                                                          \
            _Pragma("omp for schedule(static)") for (int64_t i = 0; i < batch * chunks; i++)                           \
            {                                                                                                          \
                int64_t b = i / chunks, from = i % chunks * most, at = b * plane + from * channels;                    \
                int64_t rows = pixels - from < most ? pixels - from : most;                                            \
                const float *mine = work + b * need;                                                                   \
                for (int64_t r = 0; r < rows; r++)                                                                     \
                    for (int64_t c = 0; c < channels; c += W) {                                                        \
                        int64_t p = at + r * channels + c;                                                             \
                        vf v = LOAD(x + p), a = load_f32(mine + c), s = load_f32(mine + channels + c);                 \
                        vf d = slope_##NAME(v, LOAD(g + p), a, s, act);                                                \
                        vf rest = load_f32(mine + 4 * channels + c);                                                   \
                        rest += (v - load_f32(mine + 2 * channels + c)) * load_f32(mine + 5 * channels + c);           \
                        STORE(gx + p, a * d - rest);                                                                   \
                    }                                                                                                  \
            }                                                                                                          \
        }                                                                                                              \
    }

KERNELS(f32, float, load_f32, store_f32)
KERNELS(bf16, uint16_t, load_bf16, store_bf16)

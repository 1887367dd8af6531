/* A 3x3 convolution of stride 1 and padding 1 by Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2016):

   y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A

   for tiles of 2x2 results y from 4x4 inputs d, with 16 multiplications where the direct sum takes 36. All its
   constants are 0, 1 and 1/2, and its error in float32 is that of a direct sum.

   x, y and base are channels-last, [batch][height][width][channels]; w [3][3][cin][cout]. Channels are multiples of W,
   cin of 2 W. y = conv(x) + bias + base, the last two where they are given. In bfloat16 the transformed
   inputs and filters are rounded to it, sums are float32.

   A tile's sums are made in one order whatever the number of threads and the other tiles. With AVX-512 its products use
   32 registers of 16 numbers, with AVX2 16 registers of 8; without either it is not there. In bfloat16 it needs
   AVX-512's products of pairs. */

#include "vectors.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))

#define ROWS 8         /* tiles whose products are summed at once, times two vectors of results */
#define PANEL (2 * W)  /* results of a panel of filters */
#define SKEW (2 * W)   /* numbers between rows, against rows that fall on the same lines of the cache */

int omp_get_thread_num(void);

/* What transforms work on at once: T numbers, which fill a register. */
#ifdef __AVX512F__
#define T W
typedef vf vt;
ALWAYS vt load_t(const float *p) { return load_f32(p); }
ALWAYS void store_t(float *p, vt v) { store_f32(p, v); }
#else
#define T (W / 2)
typedef float vt __attribute__((vector_size(2 * W)));
ALWAYS vt load_t(const float *p) { vt v; memcpy(&v, p, sizeof v); return v; }
ALWAYS void store_t(float *p, vt v) { memcpy(p, &v, sizeof v); }
#endif

/* G g G^T of the nine taps g, from left to right and from top to bottom. */
ALWAYS void filters(const vt g[9], vt u[16])
{
    vt t[12];
    for (int j = 0; j < 3; j++) {
        vt sum = (g[j] + g[6 + j]) * 0.5f, half = g[3 + j] * 0.5f;
        t[j] = g[j], t[3 + j] = sum + half, t[6 + j] = sum - half, t[9 + j] = g[6 + j];
    }
    for (int i = 0; i < 4; i++) {
        vt sum = (t[3 * i] + t[3 * i + 2]) * 0.5f, half = t[3 * i + 1] * 0.5f;
        u[4 * i] = t[3 * i], u[4 * i + 1] = sum + half, u[4 * i + 2] = sum - half, u[4 * i + 3] = t[3 * i + 2];
    }
}

/* B^T d B */
ALWAYS void inputs(const vt d[16], vt v[16])
{
    vt t[16];
    for (int j = 0; j < 4; j++) {
        t[j] = d[j] - d[8 + j], t[4 + j] = d[4 + j] + d[8 + j];
        t[8 + j] = d[8 + j] - d[4 + j], t[12 + j] = d[4 + j] - d[12 + j];
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = t[i] - t[i + 2], v[i + 1] = t[i + 1] + t[i + 2];
        v[i + 2] = t[i + 2] - t[i + 1], v[i + 3] = t[i + 1] - t[i + 3];
    }
}

/* A^T m A */
ALWAYS void results(const vt m[16], vt y[4])
{
    vt t[8];
    for (int j = 0; j < 4; j++) {
        t[j] = m[j] + m[4 + j] + m[8 + j];
        t[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
    y[0] = t[0] + t[1] + t[2], y[1] = t[1] - t[2] - t[3];
    y[2] = t[4] + t[5] + t[6], y[3] = t[5] - t[6] - t[7];
}

/* c [ROWS][n W] = a [ROWS][depth], rows `stride` apart, times b [depth][n W]; n is 1 or 2. */
#ifdef __AVX512F__
ALWAYS vf spread_f32(const float *p) { return (vf)_mm512_set1_ps(*p); }

ALWAYS void product_f32(const float *a, int64_t stride, const float *b, float *c, int64_t depth, int n)
{
    vf s[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) s[r][0] = s[r][1] = (vf){0};
    for (int64_t k = 0; k < depth; k++, b += n * W) {
        vf left = load_f32(b), right = n > 1 ? load_f32(b + W) : left;
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            vf v = spread_f32(a + r * stride + k);
            s[r][0] += v * left;
            if (n > 1) s[r][1] += v * right;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) store_f32(c + (r * n + j) * W, s[r][j]);
}
#else
ALWAYS void product_f32(const float *a, int64_t stride, const float *b, float *c, int64_t depth, int n)
{
    for (int j = 0; j < n; j++)
        for (int r = 0; r < ROWS; r += 4) { /* 8 sums, 2 numbers of b and 1 of a in registers */
            const float *p = b + j * W, *q = a + r * stride;
            vt s[4][2];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) s[i][0] = s[i][1] = (vt){0};
            for (int64_t k = 0; k < depth; k++, p += n * W) {
                vt left = load_t(p), right = load_t(p + T);
                __asm__("" : "+x"(left), "+x"(right)); /* once into registers, not again for every product */
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    vt v = (vt)_mm256_broadcast_ss(q + i * stride + k);
                    s[i][0] += v * left;
                    s[i][1] += v * right;
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                for (int h = 0; h < 2; h++) store_t(c + ((r + i) * n + j) * W + h * T, s[i][h]);
        }
}
#endif

/* T numbers of rows k and k + 1 of b [depth][width], from column c; k is even. */
ALWAYS void put_f32(float *b, int64_t k, int64_t width, int64_t c, vt v, vt next)
{
    store_t(b + k * width + c, v);
    store_t(b + (k + 1) * width + c, next);
}

#ifdef __AVX512BF16__
/* The same with sums of two products at once: b has rows 2k and 2k + 1 interleaved. */
ALWAYS void product_bf16(const uint16_t *a, int64_t stride, const uint16_t *b, float *c, int64_t depth, int n)
{
    __m512 s[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) s[r][0] = s[r][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2, b += 2 * n * W) {
        __m512bh left = (__m512bh)_mm512_loadu_si512(b);
        __m512bh right = n > 1 ? (__m512bh)_mm512_loadu_si512(b + 2 * W) : left;
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            memcpy(&pair, a + r * stride + k, sizeof pair);
            __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
            s[r][0] = _mm512_dpbf16_ps(s[r][0], v, left);
            if (n > 1) s[r][1] = _mm512_dpbf16_ps(s[r][1], v, right);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++) store_f32(c + (r * n + j) * W, (vf)s[r][j]);
}

ALWAYS void put_bf16(uint16_t *b, int64_t k, int64_t width, int64_t c, vf v, vf next)
{
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)next));
    _mm512_storeu_si512(b + k * width + 2 * c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
#endif

#define CONVOLUTION(NAME, TYPE, LOAD, STORE)                                                                           \
                                                                                                                       \
    /* The filters of T results, into their place in panels [cout / PANEL][16][cin][PANEL], the last maybe of W. */    \
    static void prepare_##NAME(const TYPE *w, TYPE *u, int64_t cin, int64_t cout, int64_t c)                           \
    {                                                                                                                  \
        int64_t first = c / PANEL * PANEL, width = cout - first < PANEL ? W : PANEL;                                   \
        TYPE *panel = u + 16 * first * cin;                                                                            \
        for (int64_t i = 0; i < cin; i += 2) {                                                                         \
            vt g[9], h[9], v[16], next[16];                                                                            \
            for (int k = 0; k < 9; k++) {                                                                              \
                g[k] = LOAD(w + (k * cin + i) * cout + c);                                                             \
                h[k] = LOAD(w + (k * cin + i + 1) * cout + c);                                                         \
            }                                                                                                          \
            filters(g, v);                                                                                             \
            filters(h, next);                                                                                          \
            for (int k = 0; k < 16; k++) put_##NAME(panel + k * cin * width, i, width, c - first, v[k], next[k]);      \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* A tile's transformed inputs: v [16][...] `plane` apart. What lies beyond the image is 0. */                     \
    static void gather_##NAME(const TYPE *image, TYPE *v, int64_t plane, int64_t top, int64_t left, int64_t height,    \
                              int64_t width, int64_t cin)                                                              \
    {                                                                                                                  \
        int inside = top >= 0 && left >= 0 && top + 4 <= height && left + 4 <= width;                                  \
        for (int64_t c = 0; c < cin; c += T) {                                                                         \
            vt d[16], o[16];                                                                                           \
            if (inside) {                                                                                              \
                const TYPE *p = image + (top * width + left) * cin + c;                                                \
                for (int k = 0; k < 16; k++) d[k] = LOAD(p + (k / 4 * width + k % 4) * cin);                           \
            } else {                                                                                                   \
                for (int k = 0; k < 16; k++) {                                                                         \
                    int64_t i = top + k / 4, j = left + k % 4;                                                         \
                    int there = i >= 0 && j >= 0 && i < height && j < width;                                           \
                    d[k] = there ? LOAD(image + (i * width + j) * cin + c) : (vt){0};                                  \
                }                                                                                                      \
            }                                                                                                          \
            inputs(d, o);                                                                                              \
            for (int k = 0; k < 16; k++) STORE(v + k * plane + c, o[k]);                                               \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* A tile's results for the columns of a panel, from m [16][...] `plane` apart; y and base begin at the image. */  \
    static void scatter_##NAME(const float *m, int64_t plane, TYPE *y, const float *bias, const TYPE *base,            \
                               int64_t top, int64_t left, int64_t height, int64_t width, int64_t cout, int64_t panel)  \
    {                                                                                                                  \
        for (int64_t c = 0; c < panel; c += T) {                                                                       \
            vt o[16], r[4];                                                                                            \
            for (int k = 0; k < 16; k++) o[k] = load_t(m + k * plane + c);                                             \
            results(o, r);                                                                                             \
            for (int k = 0; k < 4; k++) {                                                                              \
                int64_t i = top + k / 2, j = left + k % 2, p = (i * width + j) * cout + c;                             \
                if (i >= height || j >= width) continue;                                                               \
                if (bias) r[k] += load_t(bias + c);                                                                    \
                if (base) r[k] += LOAD(base + p);                                                                      \
                STORE(y + p, r[k]);                                                                                    \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* u: 16 cin cout numbers; work: for each thread 64 block W + 16 (block (cin + SKEW) + SKEW) floats or as many     \
       bytes. block: tiles of a thread at a time, a multiple of ROWS. */                                               \
    void undiffuse_convolution_##NAME(const TYPE *x, TYPE *y, const TYPE *w, const float *bias, const TYPE *base,      \
                                      TYPE *u, float *work, int64_t batch, int64_t height, int64_t width, int64_t cin, \
                                      int64_t cout, int64_t block, int threads)                                        \
    {                                                                                                                  \
        int64_t across = (width + 1) / 2, each = (height + 1) / 2 * across, tiles = batch * each;                      \
        int64_t stride = cin + SKEW, plane = block * stride + SKEW, own = 16 * (block * PANEL + plane);                \
        _Pragma("omp parallel num_threads(threads)")                                                                   \
        {                                                                                                              \
            _Pragma("omp for schedule(static)") for (int64_t c = 0; c < cout; c += T) prepare_##NAME(w, u, cin, cout, c); \
            float *m = work + own * omp_get_thread_num();                                                              \
            TYPE *v = (TYPE *)(m + 16 * block * PANEL);                                                                \
            _Pragma("omp for schedule(static)") for (int64_t from = 0; from < tiles; from += block)                    \
            {                                                                                                          \
                int64_t count = tiles - from < block ? tiles - from : block, rows = (count + ROWS - 1) / ROWS * ROWS;  \
                for (int64_t t = 0; t < count; t++) {                                                                  \
                    int64_t b = (from + t) / each, at = (from + t) % each;                                             \
                    gather_##NAME(x + b * height * width * cin, v + t * stride, plane, at / across * 2 - 1,            \
                                  at % across * 2 - 1, height, width, cin);                                            \
                }                                                                                                      \
                for (int64_t t = count; t < rows; t++)                                                                 \
                    for (int k = 0; k < 16; k++) memset(v + k * plane + t * stride, 0, cin * sizeof(TYPE));            \
                for (int64_t n = 0; n < cout; n += PANEL) {                                                            \
                    int64_t panel = cout - n < PANEL ? W : PANEL, part = block * panel;                                \
                    for (int k = 0; k < 16; k++) {                                                                     \
                        const TYPE *f = u + 16 * n * cin + k * cin * panel, *a = v + k * plane;                        \
                        for (int64_t r = 0; r < rows; r += ROWS) {                                                     \
                            float *to = m + k * part + r * panel;                                                      \
                            if (panel == PANEL) product_##NAME(a + r * stride, stride, f, to, cin, 2);                 \
                            else product_##NAME(a + r * stride, stride, f, to, cin, 1);                                \
                        }                                                                                              \
                    }                                                                                                  \
                    for (int64_t t = 0; t < count; t++) {                                                              \
                        int64_t b = (from + t) / each, at = (from + t) % each, image = b * height * width * cout + n;  \
                        scatter_##NAME(m + t * panel, part, y + image, bias ? bias + n : 0, base ? base + image : 0,   \
                                       at / across * 2, at % across * 2, height, width, cout, panel);                  \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

CONVOLUTION(f32, float, load_t, store_t)
#ifdef __AVX512BF16__
CONVOLUTION(bf16, uint16_t, load_bf16, store_bf16)
#endif

#endif

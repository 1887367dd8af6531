/* A 3x3 convolution of stride 1 and padding 1 by Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2016):

   y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A

   for tiles of 2x2 results y from 4x4 inputs d, with 16 multiplications where the direct sum takes 36. All its
   constants are 0, 1 and 1/2, and its error in float32 is that of a direct sum.

   x, y and base are channels-last, [batch][height][width][channels]; w [3][3][cin][cout]. Channels are multiples of W,
   cin of 2 W. y = conv(x) + bias + base, the last two where they are given. In bfloat16 the transformed
   inputs and filters are rounded to it, sums are float32.

   Where there are few tiles and many results, all inputs are transformed first and filters panel by panel; else all
   filters first and inputs block by block. So the larger of the two is never kept whole.

   A 1x1 convolution is one of the products: y [rows][cout] = x [rows][cin] w + bias + base.

   Sums are made in one order whatever the number of threads and the other tiles or rows. With AVX-512 its products use
   32 registers of 16 numbers, with AVX2 16 registers of 8; without either it is not there. In bfloat16 it needs
   AVX-512's products of pairs. */

#include "vectors.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))

#define ROWS 8         /* tiles whose products are summed at once, times two vectors of results */
#define PANEL (2 * W)  /* results of a panel of filters */
#define SKEW (2 * W)   /* numbers between rows, against rows that fall on the same lines of the cache */
#define BLOCK 16       /* tiles that a thread multiplies at a time, a multiple of ROWS */

int omp_get_thread_num(void);

/* Whether all inputs are transformed first; threads then share the panels of results. */
static int few_tiles(int64_t tiles, int64_t cout, int threads) { return 2 * tiles <= cout && cout >= PANEL * threads; }

/* Floats of a thread: its sums, and its filters or its inputs. */
static int64_t own_space(int few, int64_t cin)
{
    return 16 * BLOCK * PANEL + 16 * (few ? cin * PANEL : BLOCK * (cin + SKEW) + SKEW);
}

/* Floats that a convolution works in. */
int64_t undiffuse_convolution_space(int64_t batch, int64_t height, int64_t width, int64_t cin, int64_t cout,
                                    int threads)
{
    int64_t tiles = batch * ((height + 1) / 2) * ((width + 1) / 2), blocks = (tiles + BLOCK - 1) / BLOCK;
    int few = few_tiles(tiles, cout, threads);
    return threads * own_space(few, cin) + 16 * (few ? blocks * BLOCK * (cin + SKEW) + SKEW : cin * cout);
}

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
    /* The filters of T results from c on, into a panel [16][cin][PANEL], the last maybe of W, that begins with those of\
       result `first`. */                                                                                              \
    static void prepare_##NAME(const TYPE *w, TYPE *panel, int64_t cin, int64_t cout, int64_t first, int64_t c)        \
    {                                                                                                                  \
        int64_t width = cout - first < PANEL ? W : PANEL;                                                              \
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
    /* The transformed inputs of tile t: v [16][...] `plane` apart. What lies beyond the image or the tiles is 0. */   \
    static void gather_##NAME(const TYPE *x, TYPE *v, int64_t plane, int64_t t, int64_t tiles, int64_t height,         \
                              int64_t width, int64_t cin)                                                              \
    {                                                                                                                  \
        int64_t across = (width + 1) / 2, each = (height + 1) / 2 * across;                                            \
        int64_t top = t % each / across * 2 - 1, left = t % each % across * 2 - 1;                                     \
        const TYPE *image = x + t / each * height * width * cin;                                                       \
        int inside = top >= 0 && left >= 0 && top + 4 <= height && left + 4 <= width;                                  \
        if (t >= tiles) {                                                                                              \
            for (int k = 0; k < 16; k++) memset(v + k * plane, 0, cin * sizeof(TYPE));                                 \
            return;                                                                                                    \
        }                                                                                                              \
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
                                                                                                                       \
    /* The inputs v of `count` tiles, at most BLOCK, from number `from` on, times the panel f of filters of results from\
       n on. m: their products, 16 BLOCK PANEL numbers. */                                                             \
    static void multiply_##NAME(const TYPE *v, int64_t plane, const TYPE *f, int64_t n, float *m, TYPE *y,             \
                                const float *bias, const TYPE *base, int64_t from, int64_t count, int64_t height,      \
                                int64_t width, int64_t cin, int64_t cout)                                              \
    {                                                                                                                  \
        int64_t across = (width + 1) / 2, each = (height + 1) / 2 * across, stride = cin + SKEW;                       \
        int64_t panel = cout - n < PANEL ? W : PANEL, rows = (count + ROWS - 1) / ROWS * ROWS, part = rows * panel;    \
        for (int k = 0; k < 16; k++, f += cin * panel)                                                                 \
            for (int64_t r = 0; r < rows; r += ROWS) {                                                                 \
                const TYPE *a = v + k * plane + r * stride;                                                            \
                if (panel == PANEL) product_##NAME(a, stride, f, m + k * part + r * panel, cin, 2);                    \
                else product_##NAME(a, stride, f, m + k * part + r * panel, cin, 1);                                   \
            }                                                                                                          \
        for (int64_t t = 0; t < count; t++) {                                                                          \
            int64_t b = (from + t) / each, at = (from + t) % each, image = b * height * width * cout + n;              \
            scatter_##NAME(m + t * panel, part, y + image, bias ? bias + n : 0, base ? base + image : 0,               \
                           at / across * 2, at % across * 2, height, width, cout, panel);                              \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* work: `undiffuse_convolution_space` floats. */                                                                  \
    void undiffuse_convolution_##NAME(const TYPE *x, TYPE *y, const TYPE *w, const float *bias, const TYPE *base,      \
                                      float *work, int64_t batch, int64_t height, int64_t width, int64_t cin,          \
                                      int64_t cout, int threads)                                                       \
    {                                                                                                                  \
        int64_t across = (width + 1) / 2, each = (height + 1) / 2 * across, tiles = batch * each;                      \
        int64_t stride = cin + SKEW, blocks = (tiles + BLOCK - 1) / BLOCK, panels = (cout + PANEL - 1) / PANEL;        \
        int few = few_tiles(tiles, cout, threads);                                                                     \
        int64_t plane = (few ? blocks * BLOCK : BLOCK) * stride + SKEW, parts = 1, space = own_space(few, cin);        \
        TYPE *shared = (TYPE *)(work + threads * space);                                                               \
        /* Few blocks: threads share a block's panels, and each gathers its inputs. */                                 \
        if (threads > 1 && blocks < 2 * threads) parts = (2 * threads + blocks - 1) / blocks;                          \
        if (parts > panels) parts = panels;                                                                            \
        _Pragma("omp parallel num_threads(threads)")                                                                   \
        {                                                                                                              \
            float *m = work + space * omp_get_thread_num();                                                            \
            TYPE *own = (TYPE *)(m + 16 * BLOCK * PANEL);                                                              \
            if (few) {                                                                                                 \
                _Pragma("omp for schedule(static)") for (int64_t t = 0; t < blocks * BLOCK; t++)                       \
                    gather_##NAME(x, shared + t * stride, plane, t, tiles, height, width, cin);                        \
                _Pragma("omp for schedule(static)") for (int64_t n = 0; n < cout; n += PANEL)                          \
                {                                                                                                      \
                    for (int64_t c = n; c < cout && c < n + PANEL; c += T) prepare_##NAME(w, own, cin, cout, n, c);    \
                    for (int64_t from = 0; from < tiles; from += BLOCK)                                                \
                        multiply_##NAME(shared + from * stride, plane, own, n, m, y, bias, base, from,                 \
                                        tiles - from < BLOCK ? tiles - from : BLOCK, height, width, cin, cout);        \
                }                                                                                                      \
            } else {                                                                                                   \
                _Pragma("omp for schedule(static)") for (int64_t c = 0; c < cout; c += T)                              \
                    prepare_##NAME(w, shared + 16 * (c / PANEL * PANEL) * cin, cin, cout, c / PANEL * PANEL, c);       \
                _Pragma("omp for schedule(static)") for (int64_t item = 0; item < blocks * parts; item++)              \
                {                                                                                                      \
                    int64_t from = item / parts * BLOCK, first = item % parts * panels / parts * PANEL;                \
                    int64_t last = (item % parts + 1) * panels / parts * PANEL;                                        \
                    int64_t count = tiles - from < BLOCK ? tiles - from : BLOCK;                                       \
                    for (int64_t t = 0; t < (count + ROWS - 1) / ROWS * ROWS; t++)                                     \
                        gather_##NAME(x, own + t * stride, plane, from + t, tiles, height, width, cin);                \
                    for (int64_t n = first; n < last && n < cout; n += PANEL)                                          \
                        multiply_##NAME(own, plane, shared + 16 * n * cin, n, m, y, bias, base, from, count, height,   \
                                        width, cin, cout);                                                             \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* y [rows][cout] = x [rows][cin] w + bias + base; at least ROWS rows. w: panels [cout / PANEL][cin][PANEL], the last\
       maybe of W, in bfloat16 with each two rows of it interleaved. */                                                \
    void undiffuse_product_##NAME(const TYPE *x, TYPE *y, const TYPE *panels, const float *bias,                       \
                                  const TYPE *base, int64_t rows, int64_t cin, int64_t cout, int threads)              \
    {                                                                                                                  \
        int64_t tall = rows < 8 * ROWS * threads ? ROWS : 8 * ROWS, count = (rows + tall - 1) / tall;                  \
        int64_t all = (cout + PANEL - 1) / PANEL, parts = 1;                                                           \
        if (threads > 1 && count < 2 * threads) parts = (2 * threads + count - 1) / count;                             \
        if (parts > all) parts = all;                                                                                  \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                             \
        for (int64_t item = 0; item < count * parts; item++)                                                           \
        {                                                                                                              \
            int64_t from = item / parts * tall, to = from + tall < rows ? from + tall : rows;                          \
            int64_t last = (item % parts + 1) * all / parts * PANEL;                                                   \
            for (int64_t n = item % parts * all / parts * PANEL; n < last && n < cout; n += PANEL) {                   \
                int64_t width = cout - n < PANEL ? W : PANEL;                                                          \
                const TYPE *f = panels + n * cin;                                                                      \
                for (int64_t r = from; r < to; r += ROWS) {                                                            \
                    float m[ROWS * PANEL];                                                                             \
                    /* The last rows together with some before them: once more, to the same numbers. */                \
                    int64_t row = r + ROWS <= rows ? r : rows - ROWS;                                                  \
                    if (width == PANEL) product_##NAME(x + row * cin, cin, f, m, cin, 2);                              \
                    else product_##NAME(x + row * cin, cin, f, m, cin, 1);                                             \
                    for (int64_t i = r - row; i < ROWS; i++)                                                           \
                        for (int64_t c = 0; c < width; c += T) {                                                       \
                            vt v = load_t(m + i * width + c);                                                          \
                            if (bias) v += load_t(bias + n + c);                                                       \
                            if (base) v += LOAD(base + (row + i) * cout + n + c);                                      \
                            STORE(y + (row + i) * cout + n + c, v);                                                    \
                        }                                                                                              \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \

CONVOLUTION(f32, float, load_t, store_t)
#ifdef __AVX512BF16__
CONVOLUTION(bf16, uint16_t, load_bf16, store_bf16)
#endif

/* The gradient with respect to w is the adjoint of the same transforms:

   dw = G^T [ sum over tiles of (B^T x B) * (A dy A^T) ] G

   in float32. Tiles are transformed CHUNK at a time; each sum is made by one thread, over the tiles in their order. */

#define CHUNK 128 /* tiles that are transformed at a time */
#ifdef __AVX512F__
#define TALL 8    /* channels of x whose sums are made at once, times two vectors of results */
#else
#define TALL 4
#endif

/* A y A^T of 2x2 gradients y */
ALWAYS void gradients(const vt y[4], vt m[16])
{
    vt t[8];
    for (int j = 0; j < 2; j++) {
        t[j] = y[j], t[2 + j] = y[j] + y[2 + j];
        t[4 + j] = y[j] - y[2 + j], t[6 + j] = -y[2 + j];
    }
    for (int i = 0; i < 4; i++) {
        m[4 * i] = t[2 * i], m[4 * i + 1] = t[2 * i] + t[2 * i + 1];
        m[4 * i + 2] = t[2 * i] - t[2 * i + 1], m[4 * i + 3] = -t[2 * i + 1];
    }
}

/* G^T u G of 4x4 sums u */
ALWAYS void taps_of(const vt u[16], vt g[9])
{
    vt t[12];
    for (int j = 0; j < 4; j++) {
        vt sum = (u[4 + j] + u[8 + j]) * 0.5f;
        t[j] = u[j] + sum, t[4 + j] = (u[4 + j] - u[8 + j]) * 0.5f, t[8 + j] = sum + u[12 + j];
    }
    for (int i = 0; i < 3; i++) {
        vt sum = (t[4 * i + 1] + t[4 * i + 2]) * 0.5f;
        g[3 * i] = t[4 * i] + sum, g[3 * i + 1] = (t[4 * i + 1] - t[4 * i + 2]) * 0.5f;
        g[3 * i + 2] = sum + t[4 * i + 3];
    }
}

/* The transformed gradients of tile t: d [16][...] `plane` apart. */
static void spread(const float *dy, float *d, int64_t plane, int64_t t, int64_t height, int64_t width, int64_t cout)
{
    int64_t across = (width + 1) / 2, each = (height + 1) / 2 * across;
    int64_t top = t % each / across * 2, left = t % each % across * 2;
    const float *image = dy + t / each * height * width * cout;
    for (int64_t c = 0; c < cout; c += T) {
        vt y[4], m[16];
        for (int k = 0; k < 4; k++) {
            int64_t i = top + k / 2, j = left + k % 2;
            y[k] = i < height && j < width ? load_t(image + (i * width + j) * cout + c) : (vt){0};
        }
        gradients(y, m);
        for (int k = 0; k < 16; k++) store_t(d + k * plane + c, m[k]);
    }
}

/* u [TALL][2 T], rows `cout` apart, += the sum over rows of v [depth][TALL] times d [depth][2 T]. */
ALWAYS void outer(const float *v, int64_t vs, const float *d, int64_t ds, float *u, int64_t cout, int64_t depth)
{
    vt s[TALL][2];
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++) s[r][0] = load_t(u + r * cout), s[r][1] = load_t(u + r * cout + T);
    for (int64_t t = 0; t < depth; t++, v += vs, d += ds) {
        vt left = load_t(d), right = load_t(d + T);
#ifndef __AVX512F__
        __asm__("" : "+x"(left), "+x"(right)); /* once into registers, not again for every product */
#endif
#pragma GCC unroll 8
        for (int r = 0; r < TALL; r++) {
#ifdef __AVX512F__
            vt a = spread_f32(v + r);
#else
            vt a = (vt)_mm256_broadcast_ss(v + r);
#endif
            s[r][0] += a * left;
            s[r][1] += a * right;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++) store_t(u + r * cout, s[r][0]), store_t(u + r * cout + T, s[r][1]);
}

/* Floats that the gradient of the weights works in. */
int64_t undiffuse_weights_space(int64_t cin, int64_t cout)
{
    return 16 * (cin * cout + CHUNK * (cin + SKEW) + SKEW + CHUNK * (cout + SKEW) + SKEW);
}

/* dw [3][3][cin][cout], db [cout]; work: `undiffuse_weights_space` floats. */
void undiffuse_weights_f32(const float *x, const float *dy, float *dw, float *db, float *work, int64_t batch,
                           int64_t height, int64_t width, int64_t cin, int64_t cout, int threads)
{
    int64_t tiles = batch * ((height + 1) / 2) * ((width + 1) / 2), vs = cin + SKEW, ds = cout + SKEW;
    int64_t vplane = CHUNK * vs + SKEW, dplane = CHUNK * ds + SKEW;
    float *u = work, *v = u + 16 * cin * cout, *d = v + 16 * vplane;
    memset(db, 0, cout * sizeof *db);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < 16 * cin; k++) memset(u + k * cout, 0, cout * sizeof *u);
        for (int64_t from = 0; from < tiles; from += CHUNK) {
            int64_t count = tiles - from < CHUNK ? tiles - from : CHUNK;
#pragma omp for schedule(static)
            for (int64_t t = 0; t < count; t++) {
                gather_f32(x, v + t * vs, vplane, from + t, tiles, height, width, cin);
                spread(dy, d + t * ds, dplane, from + t, height, width, cout);
            }
#pragma omp for schedule(static)
            for (int64_t item = 0; item < 16 * (cin / W); item++) {
                int64_t k = item / (cin / W), i = item % (cin / W) * W;
                if (k == 5 && i == 0) /* the transform's second row and column is the sum of the tile */
                    for (int64_t t = 0; t < count; t++)
                        for (int64_t n = 0; n < cout; n += T)
                            store_t(db + n, load_t(db + n) + load_t(d + k * dplane + t * ds + n));
                for (int64_t n = 0; n < cout; n += 2 * T)
                    for (int64_t r = i; r < i + W; r += TALL)
                        outer(v + k * vplane + r, vs, d + k * dplane + n, ds, u + (k * cin + r) * cout + n, cout,
                              count);
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < cin; i++)
            for (int64_t c = 0; c < cout; c += T) {
                vt sums[16], g[9];
                for (int k = 0; k < 16; k++) sums[k] = load_t(u + (k * cin + i) * cout + c);
                taps_of(sums, g);
                for (int k = 0; k < 9; k++) store_t(dw + (k * cin + i) * cout + c, g[k]);
            }
    }
}

#endif

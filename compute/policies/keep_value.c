/* What keeping an expert is worth, compiled: the visit of `KeepValue`, operation for operation.
 *
 * Knows the arrays that keep_value.py has allocated and nothing of policies. Each sum is taken in
 * numpy's order and nothing is contracted or reordered, so that both versions agree to the last bit;
 * keep_value.py says what the numbers mean. A C ABI for ctypes.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ABI 1

enum { FAST, SLOW, TOTAL, SEQUENCE, NUM_USAGES };
enum { CONSTANT, USED_FAST, USED_SLOW, SHARE, SEQUENCE_SHARE, FOLLOWS, ROUTED, ROUTED_SLOW, NUM_FEATURES };

/* Arrays are C-contiguous; L layers, E experts, S sources. */
typedef struct {
    int32_t num_layers, num_experts, num_sources, top_k;
    float gamma, per_chance;
    float *usage;    /* [L, NUM_USAGES, E] */
    float *visits;   /* [L, 2]: ever, and of this sequence */
    float *follows;  /* [L, E, E + 1] */
    float *pulls;    /* [L, S * E, E] */
    float *routed;   /* [L, E] */
    float *weights;  /* [NUM_FEATURES] */
    float *squares;  /* [NUM_FEATURES] */
    /* Each layer's last visit: */
    float *features; /* [L, NUM_FEATURES, E] */
    float *pulled;   /* [L, E] */
    int32_t *origins; /* [L, S * E]: rows of `pulls`; those of source 0 come first and are the choice itself */
    float *trust;     /* [L, S * E]: of each origin */
    int32_t *counts;  /* [L, 2]: experts chosen, origins */
    /* This visit's: */
    float *scratch;       /* [NUM_FEATURES + 4 + S, E] */
    int32_t *new_origins; /* [S * E] */
} Model;

static const float KEPT_FAST = 0.9f, KEPT_SLOW = 0.97f, ROUTED_KEPT = 0.8f, ROUTED_GAINED = 0.2f;
static const float FLOOR = 0.02f, PRIOR_VISITS = 10.0f, PRIOR_USES = 5.0f;
static const float RATE = 0.1f, PULL_RATE = 0.01f;
static const float LOG_STEP = (float)(0.6931471805599453 / 8388608.0);
static const float LOG_ORIGIN = (float)(127.0 * 0.6931471805599453);
static const float EXP_STEP = (float)(8388608.0 / 0.6931471805599453);
static const float EXP_ORIGIN = 127.0f * 8388608.0f, EXP_BOUND = 40.0f * 8388608.0f;

static inline float as_float(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float rough_log(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (float)bits * LOG_STEP - LOG_ORIGIN;
}

static inline float rough_sigmoid(float z) {
    float power = z * -EXP_STEP;
    power = power < -EXP_BOUND ? -EXP_BOUND : power;
    power = power > EXP_BOUND ? EXP_BOUND : power;
    return 1.0f / (as_float((int32_t)(power + EXP_ORIGIN)) + 1.0f);
}

static void note_use(const Model *m, int layer, const float *is_used, float *share) {
    const int E = m->num_experts;
    float *usage = m->usage + (size_t)layer * NUM_USAGES * E;
    const float fast = (1.0f - KEPT_FAST) * m->per_chance, slow = (1.0f - KEPT_SLOW) * m->per_chance;
    for (int e = 0; e < E; e++) {
        usage[FAST * E + e] = usage[FAST * E + e] * KEPT_FAST + is_used[e] * fast;
        usage[SLOW * E + e] = usage[SLOW * E + e] * KEPT_SLOW + is_used[e] * slow;
        usage[TOTAL * E + e] += is_used[e];
        usage[SEQUENCE * E + e] += is_used[e];
    }
    m->visits[2 * layer] += 1.0f;
    m->visits[2 * layer + 1] += 1.0f;
    for (int e = 0; e < E; e++) share[e] = usage[TOTAL * E + e] / m->visits[2 * layer];
}

static void note_followers(const Model *m, int layer, const float *is_used) {
    const int E = m->num_experts;
    const int32_t *before = m->origins + (size_t)layer * m->num_sources * E;
    for (int i = 0; i < m->counts[2 * layer]; i++) {
        float *row = m->follows + ((size_t)layer * E + before[i]) * (E + 1);
        for (int e = 0; e < E; e++) row[e] += is_used[e];
        row[E] += 1.0f;
    }
}

/* out [E]: how much more than its share an expert follows those just used, in the mean over them. */
static void describe_followers(
    const Model *m, int layer, const int32_t *used, int num_used, const float *share, float *out) {
    const int E = m->num_experts;
    float total = 0.0f;
    memset(out, 0, sizeof(float) * E);
    for (int i = 0; i < num_used; i++) {
        const float *row = m->follows + ((size_t)layer * E + used[i]) * (E + 1);
        const float trust = 1.0f / (row[E] + PRIOR_USES);
        for (int e = 0; e < E; e++) out[e] += row[e] * trust;
        total += trust;
    }
    const float prior = total * PRIOR_USES;
    for (int e = 0; e < E; e++) out[e] = rough_log((out[e] / share[e] + prior) / (float)num_used + FLOOR);
}

static void describe(const Model *m, int layer, const float *probs, const float *share, float *features) {
    const int E = m->num_experts;
    const float *usage = m->usage + (size_t)layer * NUM_USAGES * E;
    const float in_sequence = m->visits[2 * layer + 1] + PRIOR_VISITS;
    for (int e = 0; e < E; e++) {
        const float of_sequence = (usage[SEQUENCE * E + e] + share[e] * PRIOR_VISITS) / in_sequence;
        features[CONSTANT * E + e] = 1.0f;
        features[USED_FAST * E + e] = rough_log(usage[FAST * E + e] + FLOOR);
        features[USED_SLOW * E + e] = rough_log(usage[SLOW * E + e] + FLOOR);
        features[SHARE * E + e] = rough_log(share[e] * m->per_chance + FLOOR);
        features[SEQUENCE_SHARE * E + e] = rough_log(of_sequence * m->per_chance + FLOOR);
        features[ROUTED * E + e] = features[ROUTED_SLOW * E + e] = 0.0f;
    }
    float *routed = m->routed + (size_t)layer * E;
    for (int e = 0; probs && e < E; e++) {
        const float now = probs[e] * (float)E;
        routed[e] = routed[e] * ROUTED_KEPT + now * ROUTED_GAINED;
        features[ROUTED * E + e] = rough_log(now + FLOOR);
        features[ROUTED_SLOW * E + e] = rough_log(routed[e] + FLOOR);
    }
}

static void judge(const Model *m, const float *features, const float *pulled, float *values) {
    const int E = m->num_experts;
    memset(values, 0, sizeof(float) * E);
    for (int f = 0; f < NUM_FEATURES; f++)
        for (int e = 0; e < E; e++) values[e] += features[f * E + e] * m->weights[f];
    for (int e = 0; e < E; e++) values[e] = rough_sigmoid(values[e] + pulled[e]);
}

/* One step of the values of the last visit: towards 1 for who was used, else gamma times that of now. */
static void learn(const Model *m, int layer, const float *is_used, const float *now, float *error) {
    const int E = m->num_experts, size = m->num_sources * E;
    const float *features = m->features + (size_t)layer * NUM_FEATURES * E;
    judge(m, features, m->pulled + (size_t)layer * E, error);
    for (int e = 0; e < E; e++) error[e] = (is_used[e] ? 1.0f : now[e] * m->gamma) - error[e];
    for (int f = 0; f < NUM_FEATURES; f++) {
        float gradient = 0.0f;
        for (int e = 0; e < E; e++) gradient += features[f * E + e] * error[e];
        m->squares[f] += gradient * gradient;
        m->weights[f] += gradient * RATE / sqrtf(m->squares[f]);
    }
    for (int i = 0; i < m->counts[2 * layer + 1]; i++) {
        float *row = m->pulls + ((size_t)layer * size + m->origins[(size_t)layer * size + i]) * E;
        const float rate = m->trust[(size_t)layer * size + i] * PULL_RATE;
        for (int e = 0; e < E; e++) row[e] += error[e] * rate;
    }
}

/* The choice of now and the last ones of the layers before become origins; pulled [E]: what they say. */
static int gather(
    const Model *m, int layer, const int32_t *used, int num_used, int32_t *origins, float *trust, float *pulled) {
    const int E = m->num_experts, L = m->num_layers, size = m->num_sources * E;
    int count = 0;
    memset(pulled, 0, sizeof(float) * E);
    for (int source = 0; source < m->num_sources; source++) {
        const int from = (layer - source + L) % L, chosen = source ? m->counts[2 * from] : num_used;
        const int32_t *experts = source ? m->origins + (size_t)from * size : used;
        const float share = chosen > m->top_k ? (float)m->top_k / (float)chosen : 1.0f;
        for (int i = 0; i < chosen; i++, count++) {
            origins[count] = source * E + experts[i];
            trust[count] = share;
            const float *row = m->pulls + ((size_t)layer * size + origins[count]) * E;
            for (int e = 0; e < E; e++) pulled[e] += row[e] * share;
        }
    }
    return count;
}

/* `used` [num_used] experts of `layer`, ascending; `probs` [E] or NULL; writes values [E]. */
EXPORT void keep_value_observe(
    const Model *m, int32_t layer, const int32_t *used, int32_t num_used, const float *probs, float *values) {
    const int E = m->num_experts, size = m->num_sources * E, was_visited = m->counts[2 * layer] > 0;
    float *features = m->scratch, *is_used = features + NUM_FEATURES * E, *share = is_used + E;
    float *error = share + E, *pulled = error + E, *trust = pulled + E;
    memset(is_used, 0, sizeof(float) * E);
    for (int i = 0; i < num_used; i++) is_used[used[i]] = 1.0f;
    note_use(m, layer, is_used, share);
    note_followers(m, layer, is_used);
    describe(m, layer, probs, share, features);
    describe_followers(m, layer, used, num_used, share, features + FOLLOWS * E);
    const int num_origins = gather(m, layer, used, num_used, m->new_origins, trust, pulled);
    judge(m, features, pulled, values);
    if (was_visited) learn(m, layer, is_used, values, error);
    memcpy(m->features + (size_t)layer * NUM_FEATURES * E, features, sizeof(float) * NUM_FEATURES * E);
    memcpy(m->pulled + (size_t)layer * E, pulled, sizeof(float) * E);
    memcpy(m->origins + (size_t)layer * size, m->new_origins, sizeof(int32_t) * num_origins);
    memcpy(m->trust + (size_t)layer * size, trust, sizeof(float) * num_origins);
    m->counts[2 * layer] = num_used;
    m->counts[2 * layer + 1] = num_origins;
}

EXPORT int keep_value_abi(void) { return ABI; }

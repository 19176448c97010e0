/* Two bcrypt digests at once, for auth's threads: actors/auth/lanes.py loads it.
 *
 * Why: bcrypt is a chain. Each round of Blowfish waits for what four look-ups of the round before give, and the processor stands idle the
 * while. A second digest, which depends on nothing of the first, fits into these gaps: two together take little longer than one. Neither the
 * C library nor the bcrypt package offers that.
 *
 * What may be touched: what the caller hands in (read), 48 octets of the caller's (written), and this call's own stack. No allocation, no
 * input or output, nothing kept between calls, no length that is not fixed here. As in every bcrypt the addresses that are looked up depend
 * on the password; no branch does.
 *
 * bcrypt: Provos and Mazieres, "A Future-Adaptable Password Scheme", USENIX 1999. Blowfish: Schneier, "Description of a New Variable-Length
 * Key, 64-Bit Block Cipher", 1993. Names are the papers'; the initial state, the digits of pi, comes from the caller.
 */
#include <stddef.h>
#include <stdint.h>

#define ABI 1          /* raise it when a signature or a size changes: lanes.py takes no other */
#define LANES 2
#define ROUNDS 16
#define P_WORDS (ROUNDS + 2)
#define WORDS (P_WORDS + 4 * 256)
#define SALT_WORDS 4
#define OUT_WORDS 6

#if defined(__GNUC__)  /* the lanes side by side in each round, or nothing is won */
#define UNROLL_LANES _Pragma("GCC unroll 2")
#define UNROLL_ROUNDS _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))
#else
#define UNROLL_LANES
#define UNROLL_ROUNDS
#define INLINE static inline
#endif
#define EACH_LANE UNROLL_LANES for (int j = 0; j < LANES; j++)

struct halves { uint32_t left[LANES], right[LANES]; };

struct room {          /* all that lies in memory and is secret, in one place, to be wiped */
    uint32_t state[LANES][WORDS];  /* P, then the four boxes of S */
    uint32_t key[LANES][P_WORDS], salt[LANES][P_WORDS];
    struct halves made[OUT_WORDS / 2];
};

INLINE uint32_t f(const uint32_t *s, uint32_t x)
{
    return ((s[x >> 24] + s[256 + (x >> 16 & 255)]) ^ s[512 + (x >> 8 & 255)]) + s[768 + (x & 255)];
}

INLINE struct halves encipher(const uint32_t (*state)[WORDS], struct halves h)
{
    struct halves done;
    EACH_LANE h.left[j] ^= state[j][0];
    UNROLL_ROUNDS
    for (int i = 1; i <= ROUNDS; i += 2) {
        EACH_LANE h.right[j] ^= state[j][i] ^ f(state[j] + P_WORDS, h.left[j]);
        EACH_LANE h.left[j] ^= state[j][i + 1] ^ f(state[j] + P_WORDS, h.right[j]);
    }
    EACH_LANE {
        done.left[j] = h.right[j] ^ state[j][ROUNDS + 1];
        done.right[j] = h.left[j];
    }
    return done;
}

/* ExpandKey of the paper. Without a salt it is Blowfish's own key schedule. */
INLINE void expand_key(uint32_t (*state)[WORDS], const uint32_t (*salt)[P_WORDS], const uint32_t (*key)[P_WORDS])
{
    struct halves h = {{0}, {0}};
    EACH_LANE
        for (int i = 0; i < P_WORDS; i++)
            state[j][i] ^= key[j][i];
    for (int i = 0; i < WORDS; i += 2) {
        if (salt != NULL)
            EACH_LANE {
                h.left[j] ^= salt[j][i % SALT_WORDS];
                h.right[j] ^= salt[j][i % SALT_WORDS + 1];
            }
        h = encipher((const uint32_t (*)[WORDS])state, h);
        EACH_LANE {
            state[j][i] = h.left[j];
            state[j][i + 1] = h.right[j];
        }
    }
}

static uint32_t load(const uint8_t *from)
{
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void store(uint8_t *to, uint32_t word)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(word >> (24 - 8 * i));
}

static void wipe(struct room *room)
{
    volatile uint8_t *octet = (volatile uint8_t *)room;  /* volatile: else the compiler sees that nobody reads it, and leaves it out */
    for (size_t i = 0; i < sizeof *room; i++)
        octet[i] = 0;
}

int popkernel_lanes_abi(void);
int popkernel_lanes(const uint8_t *initial, const uint8_t *keys, const uint8_t *salts, unsigned cost, uint8_t *out);

int popkernel_lanes_abi(void)
{
    return ABI;
}

/* initial: 4168 octets, P and S. keys: 72 a lane, the password and its NUL, cycled. salts: 16 a lane. out: 24 a lane. 0 when it is done. */
int popkernel_lanes(const uint8_t *initial, const uint8_t *keys, const uint8_t *salts, unsigned cost, uint8_t *out)
{
    static const uint8_t magic[] = "OrpheanBeholderScryDoubt";
    struct room room;
    if (cost < 4 || cost > 31)
        return -1;
    for (int j = 0; j < LANES; j++) {
        for (int i = 0; i < WORDS; i++)
            room.state[j][i] = load(initial + 4 * i);
        for (int i = 0; i < P_WORDS; i++) {
            room.key[j][i] = load(keys + 4 * (P_WORDS * j + i));
            room.salt[j][i] = load(salts + 4 * (SALT_WORDS * j + i % SALT_WORDS));
        }
    }
    const uint32_t (*key)[P_WORDS] = (const uint32_t (*)[P_WORDS])room.key, (*salt)[P_WORDS] = (const uint32_t (*)[P_WORDS])room.salt;
    expand_key(room.state, salt, key);
    for (uint32_t n = (uint32_t)1 << cost; n > 0; n--) {
        expand_key(room.state, NULL, key);
        expand_key(room.state, NULL, salt);
    }
    for (int i = 0; i < OUT_WORDS / 2; i++) {
        struct halves h;
        EACH_LANE h.left[j] = load(magic + 8 * i), h.right[j] = load(magic + 8 * i + 4);
        for (int n = 0; n < 64; n++)
            h = encipher((const uint32_t (*)[WORDS])room.state, h);
        room.made[i] = h;
        for (int j = 0; j < LANES; j++) {
            store(out + 4 * (OUT_WORDS * j + 2 * i), room.made[i].left[j]);
            store(out + 4 * (OUT_WORDS * j + 2 * i + 1), room.made[i].right[j]);
        }
    }
    wipe(&room);
    return 0;
}

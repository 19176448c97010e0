/* TLS 1.3 (RFC 8446) for a load client: one suite (TLS_AES_128_GCM_SHA256), one group (X25519), no resumption.
 *
 * The client shares the processors with the server, so its time is taken from the server: with OpenSSL's libssl it
 * took a quarter of a warm session's time. Each session computes what a client must: a key for the exchange, the
 * secrets, the server's Finished and the signature of its certificate's key. The certificate is parsed once in a
 * run and must stay the same; its name is not checked. For a benchmark on one machine, not for real mail. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned char u8;
enum { HASH = 32, KEY = 16, IV = 12, TAG = 16, RECORD = 16384, ROOM = RECORD + 256 + 5 };
enum { ALERT = 21, HANDSHAKE = 22, DATA = 23 };

struct half { EVP_CIPHER_CTX *cipher; u8 iv[IV]; unsigned long long seq; };
struct tls {
	struct half in, out;
	SHA256_CTX said;                              /* the transcript */
	u8 secret[HASH], client[HASH], server[HASH];  /* the current secret of the schedule; traffic secrets of the handshake */
	int keyed, done, expect;                      /* the type of the next message */
	int asked;                                    /* the server asked for a certificate, which the client has not */
	u8 *hs; size_t hslen, hscap;                  /* partial handshake messages */
	u8 *left; size_t leftlen;                     /* octets of a partial record */
	u8 *pend; size_t pendlen, pendoff;            /* records not sent yet */
	EVP_PKEY *key; u8 share[32];                  /* own key for the exchange */
	const char *why;
};

static EVP_PKEY_CTX *making; static EVP_CIPHER *aes;
static X509 *cert; static u8 *certder; static size_t certlen;

static void hmac(const u8 *key, size_t keylen, const u8 *a, size_t alen, u8 *out)
{
	u8 pad[64]; SHA256_CTX h;
	memset(pad, 0x36, 64); for (size_t i = 0; i < keylen; i++) pad[i] ^= key[i];
	SHA256_Init(&h); SHA256_Update(&h, pad, 64); SHA256_Update(&h, a, alen); u8 inner[HASH]; SHA256_Final(inner, &h);
	for (int i = 0; i < 64; i++) pad[i] ^= 0x36 ^ 0x5c;
	SHA256_Init(&h); SHA256_Update(&h, pad, 64); SHA256_Update(&h, inner, HASH); SHA256_Final(out, &h);
}
/* HKDF-Expand-Label, section 7.1; at most one block */
static void label(const u8 *secret, const char *name, const u8 *context, size_t contextlen, u8 *out, size_t outlen)
{
	u8 info[128], block[HASH]; size_t n = strlen(name), at = 0;
	info[at++] = 0; info[at++] = outlen; info[at++] = 6 + n; memcpy(info + at, "tls13 ", 6); memcpy(info + at + 6, name, n); at += 6 + n;
	info[at++] = contextlen; if (contextlen) memcpy(info + at, context, contextlen); at += contextlen; info[at++] = 1;
	hmac(secret, HASH, info, at, block); memcpy(out, block, outlen);
}
static void transcript(struct tls *t, u8 *out) { SHA256_CTX copy = t->said; SHA256_Final(out, &copy); }
/* to the next secret of the schedule: Derive-Secret(., "derived", "") and HKDF-Extract */
static void next_secret(struct tls *t, const u8 *input, size_t inputlen)
{
	static const u8 nothing[HASH] = { 0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
		0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55 };   /* SHA-256 of nothing */
	u8 salt[HASH]; label(t->secret, "derived", nothing, HASH, salt, HASH); hmac(salt, HASH, input, inputlen, t->secret);
}
static void rekey(struct half *h, const u8 *traffic, int encrypt)
{
	u8 key[KEY]; label(traffic, "key", NULL, 0, key, KEY); label(traffic, "iv", NULL, 0, h->iv, IV); h->seq = 0;
	if (!h->cipher) { h->cipher = EVP_CIPHER_CTX_new(); EVP_CipherInit_ex2(h->cipher, aes, key, NULL, encrypt, NULL); }
	else EVP_CipherInit_ex2(h->cipher, NULL, key, NULL, encrypt, NULL);
}
static void nonce(struct half *h, u8 *out)
{
	memcpy(out, h->iv, IV);
	for (int i = 0; i < 8; i++) out[IV - 1 - i] ^= h->seq >> (8 * i);
	h->seq++;
}
/* Seals one record of `type` into `out`; returns its length. */
static size_t seal(struct tls *t, int type, const u8 *data, size_t len, u8 *out)
{
	u8 n[IV]; int k = 0, end = 0; size_t inner = len + 1 + TAG;
	out[0] = DATA; out[1] = out[2] = 3; out[3] = inner >> 8; out[4] = inner;
	nonce(&t->out, n); u8 kind = type;
	EVP_EncryptInit_ex2(t->out.cipher, NULL, NULL, n, NULL);
	EVP_EncryptUpdate(t->out.cipher, NULL, &k, out, 5);
	EVP_EncryptUpdate(t->out.cipher, out + 5, &k, data, len); end = k;
	EVP_EncryptUpdate(t->out.cipher, out + 5 + end, &k, &kind, 1); end += k;
	EVP_EncryptFinal_ex(t->out.cipher, out + 5 + end, &k);
	EVP_CIPHER_CTX_ctrl(t->out.cipher, EVP_CTRL_AEAD_GET_TAG, TAG, out + 5 + end);
	return 5 + inner;
}
/* Opens a record in place; returns the content length, its type in *type; -1 if the tag is wrong. */
static long unseal(struct tls *t, u8 *record, size_t len, int *type)
{
	u8 n[IV]; int k = 0; long inner = (long)len - 5 - TAG;
	if (inner < 1) return -1;
	nonce(&t->in, n);
	EVP_DecryptInit_ex2(t->in.cipher, NULL, NULL, n, NULL);
	EVP_CIPHER_CTX_ctrl(t->in.cipher, EVP_CTRL_AEAD_SET_TAG, TAG, record + 5 + inner);
	EVP_DecryptUpdate(t->in.cipher, NULL, &k, record, 5);
	EVP_DecryptUpdate(t->in.cipher, record + 5, &k, record + 5, inner);
	if (EVP_DecryptFinal_ex(t->in.cipher, record + 5 + k, &k) != 1) return -1;
	while (inner && !record[5 + inner - 1]) inner--;   /* padding */
	if (!inner) return -1;
	*type = record[5 + inner - 1];
	return inner - 1;
}
static int tls_setup(void)
{
	aes = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
	making = EVP_PKEY_CTX_new_id(EVP_PKEY_X25519, NULL);
	return aes && making && EVP_PKEY_keygen_init(making) == 1 ? 0 : -1;
}
/* Sends what the socket takes of `data`; the rest stays in t->pend. -1: the connection is lost. */
static int push_out(struct tls *t, int fd, const u8 *data, size_t len)
{
	ssize_t n = t->pend ? 0 : write(fd, data, len);
	if (n < 0 && errno != EAGAIN) { t->why = "the connection is lost"; return -1; }
	if (n < 0) n = 0;
	if ((size_t)n < len) { if (!t->pend) t->pendlen = t->pendoff = 0; t->pend = realloc(t->pend, t->pendlen + len - n); memcpy(t->pend + t->pendlen, data + n, len - n); t->pendlen += len - n; }
	return 0;
}
/* Sends what is pending: 1 all is sent, 0 the socket is full, -1 the connection is lost. */
static int push_pending(struct tls *t, int fd)
{
	while (t->pend) {
		ssize_t n = write(fd, t->pend + t->pendoff, t->pendlen - t->pendoff);
		if (n < 0) return errno == EAGAIN ? 0 : -1;
		if ((t->pendoff += n) == t->pendlen) { free(t->pend); t->pend = NULL; }
	}
	return 1;
}
static struct tls *tls_begin(struct tls *t, int fd)   /* sends the hello; reuses the buffers of an earlier session */
{
	static const u8 fixed[] = {
		0, 2, 0x13, 0x01, 1, 0,                                   /* one suite, no compression */
		0, 0,                                                     /* octets of extensions, below */
		0, 43, 0, 3, 2, 3, 4,                                     /* supported_versions: 1.3 */
		0, 10, 0, 4, 0, 2, 0, 29,                                 /* supported_groups: x25519 */
		0, 13, 0, 12, 0, 10, 4, 3, 5, 3, 8, 7, 8, 4, 8, 5,        /* signature_algorithms: ECDSA P-256 and P-384, Ed25519, RSA-PSS */
		0, 45, 0, 2, 1, 1,                                        /* psk_key_exchange_modes: who sends tickets sends them */
		0, 51, 0, 38, 0, 36, 0, 29, 0, 32,                        /* key_share: x25519, then the key */
	};
	static u8 random[64]; u8 hello[256]; size_t at = 0;
	if (!t) t = calloc(1, sizeof *t);
	t->keyed = t->done = t->asked = 0; t->expect = 2; t->hslen = 0; t->why = NULL;
	size_t n = 32; t->key = NULL;
	if (EVP_PKEY_keygen(making, &t->key) != 1 || EVP_PKEY_get_raw_public_key(t->key, t->share, &n) != 1) abort();
	if (!random[0]) RAND_bytes(random, 64); else for (int i = 0; i < 64 && !++random[i]; i++) ;   /* never the same twice */
	hello[at++] = HANDSHAKE; hello[at++] = 3; hello[at++] = 1; at += 2;
	hello[at++] = 1; at += 3; hello[at++] = 3; hello[at++] = 3;
	memcpy(hello + at, random, 32); at += 32; hello[at++] = 32; memcpy(hello + at, random + 32, 32); at += 32;
	size_t start = at; memcpy(hello + at, fixed, sizeof fixed); at += sizeof fixed; memcpy(hello + at, t->share, 32); at += 32;
	size_t extensions = at - start - 8; hello[start + 6] = extensions >> 8; hello[start + 7] = extensions;
	hello[3] = (at - 5) >> 8; hello[4] = at - 5; hello[6] = 0; hello[7] = (at - 9) >> 8; hello[8] = at - 9;
	SHA256_Init(&t->said); SHA256_Update(&t->said, hello + 5, at - 5);
	push_out(t, fd, hello, at);
	return t;
}
static void tls_end(struct tls *t)
{
	free(t->left); t->left = NULL; t->leftlen = 0; free(t->pend); t->pend = NULL; EVP_PKEY_free(t->key); t->key = NULL;
}
static int server_hello(struct tls *t, const u8 *m, size_t len)
{
	const u8 *end = m + len, *p = m + 4 + 2 + 32, *key = NULL;
	if (p >= end) return -1;
	p += 1 + *p;
	if (p + 5 > end || p[0] != 0x13 || p[1] != 0x01) return -1;
	for (p += 5; p + 4 <= end; p += 4 + (p[2] << 8 | p[3])) if (!p[0] && p[1] == 51 && p + 40 <= end && p[5] == 29) key = p + 8;
	u8 shared[32], hash[HASH]; size_t n = 32; static const u8 zero[HASH];
	EVP_PKEY *its = key ? EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, key, 32) : NULL;
	EVP_PKEY_CTX *c = EVP_PKEY_CTX_new(t->key, NULL);
	int ok = its && EVP_PKEY_derive_init(c) == 1 && EVP_PKEY_derive_set_peer(c, its) == 1 && EVP_PKEY_derive(c, shared, &n) == 1;
	EVP_PKEY_CTX_free(c); EVP_PKEY_free(its);
	if (!ok) return -1;
	hmac(zero, HASH, zero, HASH, t->secret);   /* no PSK */
	next_secret(t, shared, 32); transcript(t, hash);
	label(t->secret, "c hs traffic", hash, HASH, t->client, HASH); label(t->secret, "s hs traffic", hash, HASH, t->server, HASH);
	rekey(&t->in, t->server, 0); rekey(&t->out, t->client, 1); t->keyed = 1;
	return 0;
}
/* Certificate, section 4.4.2: the first of the list */
static int certificate(const u8 *m, size_t len)
{
	size_t n = len > 15 ? (size_t)m[8] << 16 | m[9] << 8 | m[10] : 0; const u8 *der = m + 11;
	if (!n || 11 + n > len) return -1;
	if (cert) return n == certlen && !memcmp(der, certder, n) ? 0 : -1;
	certder = malloc(certlen = n); memcpy(certder, der, n);
	return (cert = d2i_X509(NULL, &der, n)) ? 0 : -1;
}
/* CertificateVerify, section 4.4.3 */
static int verified(struct tls *t, const u8 *m, size_t len)
{
	u8 said[64 + 34 + HASH]; EVP_MD_CTX *c = EVP_MD_CTX_new(); EVP_PKEY_CTX *kc = NULL; EVP_PKEY *key = cert ? X509_get0_pubkey(cert) : NULL;
	memset(said, ' ', 64); memcpy(said + 64, "TLS 1.3, server CertificateVerify", 34); transcript(t, said + 98);
	const EVP_MD *md = len < 8 ? NULL : m[4] == 4 || (m[4] == 8 && m[5] == 4) ? EVP_sha256() : m[4] == 5 || (m[4] == 8 && m[5] == 5) ? EVP_sha384() : NULL;
	int ok = key && len >= 8 && EVP_DigestVerifyInit(c, &kc, md, NULL, key) == 1;
	if (ok && m[4] == 8 && m[5] != 7) ok = EVP_PKEY_CTX_set_rsa_padding(kc, RSA_PKCS1_PSS_PADDING) == 1 && EVP_PKEY_CTX_set_rsa_pss_saltlen(kc, RSA_PSS_SALTLEN_DIGEST) == 1;
	ok = ok && EVP_DigestVerify(c, m + 8, len - 8, said, sizeof said) == 1;
	EVP_MD_CTX_free(c);
	return ok;
}
static int finished(struct tls *t, int fd, const u8 *m, size_t len)
{
	u8 hash[HASH], key[HASH], mac[HASH], flight[256] = { 20, 3, 3, 0, 1, 1 }, c[HASH], s[HASH], answered[HASH];
	u8 both[8 + 4 + HASH] = { 11, 0, 0, 4, 0, 0, 0, 0, 20, 0, 0, HASH }, *own = both + 8;   /* an empty Certificate if asked, Finished */
	static const u8 zero[HASH];
	transcript(t, hash); label(t->server, "finished", NULL, 0, key, HASH); hmac(key, HASH, hash, HASH, mac);
	if (len != 4 + HASH || memcmp(mac, m + 4, HASH)) { t->why = "the server's Finished is wrong"; return -1; }
	SHA256_Update(&t->said, m, len); transcript(t, hash);
	if (t->asked) SHA256_Update(&t->said, both, 8);
	transcript(t, answered);
	label(t->client, "finished", NULL, 0, key, HASH); hmac(key, HASH, answered, HASH, own + 4);
	size_t n = 6 + (t->asked ? seal(t, HANDSHAKE, both, sizeof both, flight + 6) : seal(t, HANDSHAKE, own, 4 + HASH, flight + 6));   /* after a ChangeCipherSpec, as clients send it (appendix D.4) */
	next_secret(t, zero, HASH);
	label(t->secret, "c ap traffic", hash, HASH, c, HASH); label(t->secret, "s ap traffic", hash, HASH, s, HASH);
	rekey(&t->in, s, 0); rekey(&t->out, c, 1); t->done = 1;
	return push_out(t, fd, flight, n);
}
static int message(struct tls *t, int fd, const u8 *m, size_t len)
{
	if (t->done) return m[0] == 4 ? 0 : (t->why = "a message after the handshake", -1);   /* NewSessionTicket */
	if (m[0] == 13 && t->expect == 11 && !t->asked && len > 4 && !m[4]) { t->asked = 1; SHA256_Update(&t->said, m, len); return 0; }   /* CertificateRequest */
	if (m[0] != t->expect) { t->why = "a message out of turn"; return -1; }
	t->expect = m[0] == 2 ? 8 : m[0] == 8 ? 11 : m[0] == 11 ? 15 : 20;
	if (m[0] == 20) return finished(t, fd, m, len);
	if (m[0] == 11 && certificate(m, len)) { t->why = "a certificate that is none, or another one than before"; return -1; }
	if (m[0] == 15 && !verified(t, m, len)) { t->why = "the certificate's key did not sign this"; return -1; }
	SHA256_Update(&t->said, m, len);
	return m[0] == 2 && server_hello(t, m, len) ? (t->why = "a hello that is not as asked", -1) : 0;
}
static int handshake_octets(struct tls *t, int fd, const u8 *data, size_t len)
{
	if (t->hslen + len > t->hscap) { t->hscap = (t->hslen + len) * 2; t->hs = realloc(t->hs, t->hscap); }
	memcpy(t->hs + t->hslen, data, len); t->hslen += len;
	size_t at = 0;
	while (t->hslen - at >= 4) {
		size_t whole = 4 + ((size_t)t->hs[at + 1] << 16 | t->hs[at + 2] << 8 | t->hs[at + 3]);
		if (whole > t->hslen - at) break;
		int type = t->hs[at], over = t->done;
		if (message(t, fd, t->hs + at, whole) < 0) return -1;
		at += whole;
		if (!over && (type == 2 || type == 20) && at < t->hslen) { t->why = "more behind a change of keys"; return -1; }
	}
	memmove(t->hs, t->hs + at, t->hslen -= at);
	return 0;
}
/* Reads once and passes whole records to `take(arg, octets, length)`, which returns 1 if the session is over; `t`
 * then belongs to another session. 1: there may be more; 0: wait; -1: over, by take(); -2: closed or broken, t->why. */
static int tls_read(struct tls *t, int fd, int (*take)(void *, char *, int), void *arg)
{
	static u8 room[ROOM * 16];
	size_t have = t->leftlen;
	if (have) { memcpy(room, t->left, have); free(t->left); t->left = NULL; t->leftlen = 0; }
	errno = 0;
	ssize_t n = read(fd, room + have, sizeof room - have);
	int again = n < 0 && errno == EAGAIN, full = n == (ssize_t)(sizeof room - have);
	if (n <= 0 && !again) { t->why = n ? "the connection is lost" : "an end of TCP"; return -2; }
	have += again ? 0 : n;
	size_t at = 0;
	while (have - at >= 5) {
		u8 *r = room + at; size_t whole = 5 + (r[3] << 8 | r[4]); int type = r[0]; long len = whole - 5;
		if (whole > ROOM) { t->why = "a record too long"; return -2; }
		if (whole > have - at) break;
		at += whole;
		if (type == 20) continue;   /* ChangeCipherSpec is ignored */
		if (t->keyed && (type != DATA || (len = unseal(t, r, whole, &type)) < 0)) { t->why = "a record that can't be opened"; return -2; }
		if (type == HANDSHAKE) { if (handshake_octets(t, fd, r + 5, len) < 0) return -2; }
		else if (type == DATA && t->done) { if (len && take(arg, (char *)r + 5, len)) return -1; }
		else { t->why = type == ALERT ? "closed by an alert" : "a record out of place"; return -2; }
	}
	if (at < have) { t->left = malloc(have - at); memcpy(t->left, room + at, t->leftlen = have - at); }
	return again ? 0 : full;
}
/* Encrypts and sends: 1 all is sent, 0 the socket is full, -1 the connection is lost. */
static int tls_write(struct tls *t, int fd, const char *data, size_t len, size_t *taken)
{
	static u8 out[ROOM];
	while (*taken < len || t->pend) {
		int r = push_pending(t, fd);
		if (r < 1) return r;
		if (*taken == len) break;
		size_t part = len - *taken < RECORD ? len - *taken : RECORD;
		if (push_out(t, fd, out, seal(t, DATA, (const u8 *)data + *taken, part, out)) < 0) return -1;
		*taken += part;
	}
	return 1;
}

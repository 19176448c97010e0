/* popload: a POP3 load client. One process, epoll, optional TLS 1.3 (tls13.h, on OpenSSL's libcrypto).
 *
 *   popload [-h host] [-p port] [-T] [-c conns] [-n sessions] [-d secs] [-u userfmt]
 *           [-U users] [-w password] [-P] [-H secs] [-q]
 *           [-F first] [-t secs] [-r reps] STEP...
 *
 *  -T   implicit TLS (pop3s)   -c concurrent sessions   -n sessions in all
 *  -u   user name format ("user%04d"), -U number of users (round robin)
 *  -F   number of the first user (default 0)
 *  -t   seconds after which unfinished sessions have failed (default 600)
 *  -P   pipeline every step after the login in one write, except QUIT, which waits for all answers
 *       (Dovecot 2.3 sometimes drops the last answers if QUIT comes before they are read)
 *  -H   hold: log in -c sessions, then sleep SECS (or until SIGUSR1), then the steps in each
 *  -r   how often a step that begins with '@' is sent, each time after the last answer and timed
 *       by itself; '%' in it is a message number, from 1 on, cyclically
 *  -W   a second password: odd sessions use it and must be refused
 *  STEP a POP3 command; a trailing '.' marks a multi-line answer;
 *       "RETR*." stands for RETR 1..N with N from STAT, "DELE*" likewise.
 * Prints one line of name=value: sessions ok, fail(ed), refused; wall s; rate (sessions/s); mbs (MB/s of
 * payload); msgs (messages/s); messages and octets read in all;
 * percentiles of session, login and timed command in ms; cpu s of this client.
 * "holding N sessions" goes to standard error once all are logged in. Exit code 1 if a session failed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "tls13.h"

enum { MAXSTEP = 64, OPENING = 30 /* held sessions that log in at a time */ };
static const char *host = "127.0.0.1", *userfmt = "user%04d", *password = "secret", *badpw;
static int port = 110, tls, conns = 10, users = 1, pipelined, quiet, first;
static long total = 100;
static double hold, limit = 1e9, bound = 600;
static long reps, nrtt;
static double *rtt;
static volatile sig_atomic_t let_go;
static char *steps[MAXSTEP];
static int nsteps;

struct cmd { char multi, kind; };
struct conn {
	int fd, linked, id, user;
	unsigned armed;                               /* what epoll waits for */
	struct tls *tls;                              /* kept for the next session */
	char *out; size_t outlen, outoff, outcap;
	struct cmd *q; int qlen, qoff, qcap;          /* answers still owed */
	int phase;                                    /* 0 greet 1 user 2 pass 3 steps 4 held */
	int step; long count, bytes, msgs;
	char line[1024]; int linelen; int inmulti; int longline;
	long rep; double tcmd;
	double t0, tlogin; int bad, refused; int isbad;
};
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static int ep;
static long started, okn, failn, refusedn, allbytes, allmsgs, wirebytes;
static double *lat, *llat; static long nlat, nllat;
static int nheld; static double heldsince;
static struct conn *all;

static void begin(struct conn *c);
static void push(struct conn *c, const char *s, int multi, int kind)
{
	size_t n = strlen(s);
	if (c->outlen + n + 2 > c->outcap) { c->outcap = (c->outlen + n + 2) * 2; c->out = realloc(c->out, c->outcap); }
	memcpy(c->out + c->outlen, s, n); memcpy(c->out + c->outlen + n, "\r\n", 2); c->outlen += n + 2;
	if (c->qlen == c->qcap) { c->qcap = c->qcap ? c->qcap * 2 : 16; c->q = realloc(c->q, c->qcap * sizeof *c->q); }
	c->q[c->qlen].multi = multi; c->q[c->qlen++].kind = kind;
}
static void arm(struct conn *c, int w)
{
	struct epoll_event e = { EPOLLIN | (w ? EPOLLOUT : 0), { .ptr = c } };
	if (e.events == c->armed) return;
	c->armed = e.events; epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}
static void finish(struct conn *c, int ok, const char *why)
{
	double t = now();
	if (ok && !c->bad) { okn++; lat[nlat++] = t - c->t0; } else if (c->refused && c->isbad) refusedn++; else { failn++; if (!quiet && failn <= 5) fprintf(stderr, "session failed: %s\n", why); }
	allbytes += c->bytes; allmsgs += c->msgs;
	if (c->tls) tls_end(c->tls);
	close(c->fd); c->fd = -1; free(c->out); c->out = NULL; c->outcap = 0; free(c->q); c->q = NULL; c->qcap = 0;
	if (hold == 0 && started < total && now() < limit) begin(c);   /* a lost held session is a failure and is not replaced */
}
static int flush(struct conn *c)
{
	if (tls) {
		int r = tls_write(c->tls, c->fd, c->out, c->outlen, &c->outoff);
		if (r < 1) { if (!r) arm(c, 1); return r; }
	}
	while (c->outoff < c->outlen) {
		int n = write(c->fd, c->out + c->outoff, c->outlen - c->outoff);
		if (n < 0) { if (errno == EAGAIN) { arm(c, 1); return 0; } return -1; }
		c->outoff += n;
	}
	c->outoff = c->outlen = 0; arm(c, 0); return 0;
}
static void emit(struct conn *c, const char *s)
{
	char b[512]; size_t n = strlen(s); int multi = s[n - 1] == '.';
	snprintf(b, sizeof b, "%.*s", (int)(n - multi), s);
	char *star = strchr(b, '*');
	if (star) { *star = 0; char l[600]; for (long i = 1; i <= c->count; i++) { snprintf(l, sizeof l, "%s %ld%s", b, i, star + 1); push(c, l, multi, !strncmp(b, "RETR", 4) ? 'r' : 0); } return; }
	push(c, b, multi, !strncmp(b, "STAT", 4) ? 's' : !strncmp(b, "RETR", 4) ? 'r' : 0);
}
static int timed(struct conn *c)   /* sends a timed step again; 0 when all are done */
{
	char b[300], *p; const char *s = steps[c->step] + 1; double t = now();
	if (c->rep > 0) rtt[nrtt++] = t - c->tcmd;
	if (c->rep == reps) { c->rep = 0; c->step++; return 0; }
	if ((p = strchr(s, '%'))) snprintf(b, sizeof b, "%.*s%ld%s", (int)(p - s), s, 1 + c->rep % (c->count ? c->count : 1), p + 1);
	else snprintf(b, sizeof b, "%s", s);
	size_t n = strlen(b); int multi = b[n - 1] == '.';
	if (multi) b[n - 1] = 0;
	c->rep++; push(c, b, multi, 0); c->tcmd = now(); return 1;
}
static void released_by(int number) { (void)number; let_go = 1; }
static int advance(struct conn *c)   /* all answers have come */
{
	char b[300];
	switch (c->phase) {
	case 0: snprintf(b, sizeof b, "USER "); snprintf(b + 5, sizeof b - 5, userfmt, c->user); push(c, b, 0, 0); c->phase = 1; break;
	case 1: snprintf(b, sizeof b, "PASS %s", c->isbad ? badpw : password); push(c, b, 0, 'p'); c->phase = 2; break;
	case 2: c->tlogin = now() - c->t0; llat[nllat++] = c->tlogin; c->phase = 3; c->step = 0;
		if (hold > 0) { c->phase = 4; nheld++; if (nheld == conns) { heldsince = now(); fprintf(stderr, "holding %d sessions\n", conns); } return 0; }
		/* fallthrough */
	case 3:
		if (c->step < nsteps && steps[c->step][0] == '@' && timed(c)) break;
		if (c->step == nsteps) { finish(c, 1, ""); return 1; }
		if (!pipelined) emit(c, steps[c->step++]);
		else { int stat = 0; do { stat |= !strncmp(steps[c->step], "STAT", 4); emit(c, steps[c->step++]); } while (c->step < nsteps && strcmp(steps[c->step], "QUIT") && !(stat && strchr(steps[c->step], '*'))); }
		break;
	case 4: if (c->step == nsteps) { finish(c, 1, ""); return 1; } emit(c, steps[c->step++]); break;
	}
	if (flush(c) < 0) { finish(c, 0, "write"); return 1; }
	return 0;
}
static int endline(struct conn *c)   /* returns 1 if the connection is finished */
{
	char *l = c->line; int n = c->linelen; c->linelen = 0; c->longline = 0;
	if (n && l[n - 1] == '\r') n--;
	l[n] = 0;
	if (c->inmulti) { if (n == 1 && l[0] == '.') { c->inmulti = 0; c->qoff++; } else return 0; }
	else if (c->phase == 0) { if (l[0] != '+') { finish(c, 0, l); return 1; } return advance(c); }
	else {
		if (c->qoff >= c->qlen) { c->bad = 1; finish(c, 0, "unasked answer"); return 1; }
		struct cmd q = c->q[c->qoff];
		if (l[0] != '+') { if (q.kind == 'p') c->refused = 1; c->bad = 1; finish(c, 0, l); return 1; }
		if (q.kind == 's') c->count = strtol(l + 3, NULL, 10);
		if (q.kind == 'r') c->msgs++;
		if (q.multi) { c->inmulti = 1; return 0; }
		c->qoff++;
	}
	if (c->qoff == c->qlen) { c->qoff = c->qlen = 0; return advance(c); }
	return 0;
}
static int feed(void *conn, char *b, int n)
{
	struct conn *c = conn;
	char *p = b, *e = b + n;
	wirebytes += n;
	while (p < e) {
		char *nl = memchr(p, '\n', e - p); char *q = nl ? nl : e;
		int k = q - p; if (c->inmulti) c->bytes += k + (nl != NULL);
		if (nl && c->inmulti && !c->linelen && k > 2) { p = nl + 1; continue; }   /* a line of a message */
		int room = (int)sizeof c->line - 1 - c->linelen; int cp = k < room ? k : room;
		memcpy(c->line + c->linelen, p, cp); c->linelen += cp;
		if (!nl) break;
		p = nl + 1;
		if (endline(c)) return 1;
	}
	return 0;
}
static void begin(struct conn *c)
{
	int id = c->id; struct tls *t = c->tls; memset(c, 0, sizeof *c); c->id = id; c->fd = -1; c->tls = t;
	c->user = first + started % users; c->isbad = badpw && (started & 1); started++;
	c->t0 = now();
	c->fd = socket(AF_INET, SOCK_STREAM, 0); int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct linger lg = { 1, 0 }; setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) }; inet_pton(AF_INET, host, &a.sin_addr);
	fcntl(c->fd, F_SETFL, O_NONBLOCK);
	if (connect(c->fd, (void *)&a, sizeof a) < 0 && errno != EINPROGRESS) { perror("connect"); exit(1); }
	struct epoll_event e = { c->armed = EPOLLIN | EPOLLOUT, { .ptr = c } }; epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}
static void ready(struct conn *c, unsigned ev)
{
	static char b[65536];
	if (c->fd < 0) return;
	if (!c->linked) {   /* connected */
		c->linked = 1;
		if (tls) c->tls = tls_begin(c->tls, c->fd);
		arm(c, 0);
	}
	if ((ev & EPOLLOUT)) { if (flush(c) < 0) { finish(c, 0, "write"); return; } }
	for (;;) {
		int n;
		if (tls) {
			n = tls_read(c->tls, c->fd, feed, c);
			if (n == -2) { char said[200]; snprintf(said, sizeof said, "closed: phase %d step %d, answers owed %d, %s, %s", c->phase, c->step, c->qlen - c->qoff, c->tls->why, strerror(errno)); finish(c, 0, said); }
			if (!n && c->tls->pend) arm(c, 1);
			if (n < 1) return;
			continue;
		}
		n = read(c->fd, b, sizeof b); if (n < 0 && errno == EAGAIN) return; if (n <= 0) { finish(c, 0, "closed"); return; }
		if (feed(c, b, n) || n < (int)sizeof b) return;   /* epoll reports further input */
	}
}
static int dcmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return x < y ? -1 : x > y; }
static double pct(double *v, long n, double p) { return n ? v[(long)(p * (n - 1))] * 1e3 : 0; }
int main(int argc, char **argv)
{
	int o; double dur = 0;
	signal(SIGPIPE, SIG_IGN); /* a lost server is a failed session, not the end of the load */
	while ((o = getopt(argc, argv, "h:p:Tc:n:d:u:U:F:t:r:w:W:PH:q")) != -1) switch (o) {
	case 'h': host = optarg; break; case 'p': port = atoi(optarg); break; case 'T': tls = 1; break;
	case 'c': conns = atoi(optarg); break; case 'n': total = atol(optarg); break; case 'd': dur = atof(optarg); total = 10000000; break;
	case 'u': userfmt = optarg; break; case 'U': users = atoi(optarg); break; case 'F': first = atoi(optarg); break;
	case 't': bound = atof(optarg); break; case 'r': reps = atol(optarg); break; case 'w': password = optarg; break; case 'W': badpw = optarg; break;
	case 'P': pipelined = 1; break; case 'H': hold = atof(optarg); break; case 'q': quiet = 1; break;
	default: return 2; }
	for (; optind < argc && nsteps < MAXSTEP; optind++) steps[nsteps++] = argv[optind];
	if (hold > 0) total = conns;
	if (conns > total) conns = total;
	struct rlimit rl = { 100000, 100000 }; setrlimit(RLIMIT_NOFILE, &rl);
	if (tls && tls_setup()) { fprintf(stderr, "OpenSSL has no X25519 or no AES-128-GCM\n"); return 2; }
	struct sigaction sa = { .sa_handler = released_by }; sigaction(SIGUSR1, &sa, NULL);
	long timed_steps = 0; for (int i = 0; i < nsteps; i++) timed_steps += steps[i][0] == '@';
	if (reps > 0 && timed_steps > 0) rtt = malloc(reps * timed_steps * total * sizeof *rtt);
	long cap = dur ? 2000000 : total + 1; lat = malloc(cap * sizeof *lat); llat = malloc(cap * sizeof *llat);
	ep = epoll_create1(0); all = calloc(conns, sizeof *all);
	double t0 = now(); if (dur) limit = t0 + dur;
	int inflight = 0; (void)inflight;
	for (int i = 0; i < conns; i++) { all[i].id = i; begin(&all[i]); while (hold > 0 && i + 1 - nheld - failn > OPENING && now() - t0 < bound) { struct epoll_event ev[256]; int n = epoll_wait(ep, ev, 256, 20); for (int k = 0; k < n; k++) ready(ev[k].data.ptr, ev[k].events); } }
	struct epoll_event ev[256]; double released = 0;
	for (;;) {
		long done = okn + failn + refusedn;
		if (done >= total || (dur && now() >= limit && done >= started)) break;
		if (now() - t0 > bound) { failn += started - done; fprintf(stderr, "given up after %.0f s\n", bound); break; }
		int n = epoll_wait(ep, ev, 256, 100);
		for (int i = 0; i < n; i++) ready(ev[i].data.ptr, ev[i].events);
		if (hold > 0 && !released && failn && nheld + failn >= conns) break;   /* fewer than should be held */
		if (hold > 0 && !released && nheld + failn >= conns && now() - (heldsince ? heldsince : (heldsince = now())) > (let_go ? 0 : hold)) { released = now(); for (int i = 0; i < conns; i++) if (all[i].fd >= 0 && all[i].phase == 4) advance(&all[i]); }
	}
	double w = now() - t0; struct rusage ru; getrusage(RUSAGE_SELF, &ru);
	qsort(lat, nlat, sizeof *lat, dcmp); qsort(llat, nllat, sizeof *llat, dcmp);
	qsort(rtt, nrtt, sizeof *rtt, dcmp);
	printf("ok=%ld fail=%ld refused=%ld wall=%.6f rate=%.3f mbs=%.3f msgs=%.1f messages=%ld octets=%ld session_p50=%.3f session_p99=%.3f login_p50=%.3f login_p99=%.3f command_p50=%.4f command_p99=%.4f cpu=%.2f\n",
	    okn, failn, refusedn, w, okn / w, allbytes / w / 1e6, allmsgs / w, allmsgs, allbytes, pct(lat, nlat, .5), pct(lat, nlat, .99), pct(llat, nllat, .5), pct(llat, nllat, .99), pct(rtt, nrtt, .5), pct(rtt, nrtt, .99),
	    ru.ru_utime.tv_sec + ru.ru_utime.tv_usec / 1e6 + ru.ru_stime.tv_sec + ru.ru_stime.tv_usec / 1e6);
	return failn ? 1 : 0;
}

/*
 * A line with a round trip and a rate, between a client and a server on loopback.
 *
 *     shape --to HOST:PORT [--port N] [--rtt-ms 50] [--mbit 200] [--line-mbit 1600]
 *
 * Prints its port. Every byte arrives half a round trip after it was sent, one connection carries
 * at most --mbit in each direction, all together at most --line-mbit in each, and a connection's
 * first bytes wait one round trip more, for its handshake. What is under way in one direction of a
 * connection is bounded by rate x round trip, as by a well-tuned TCP window, so that a sender feels
 * the line. Not modelled: slow start, loss, and jitter.
 *
 * On SIGTERM it prints how many connections there were at once at most, and ends.
 */
#include "net.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#define BLOCK (32 << 10)

struct piece {
    double due;
    size_t size;
    struct piece *next;
    char data[];
};

/* One direction of one connection: a reader fills the queue, a writer empties it in time. */
struct direction {
    int from, to;
    bool up;
    double opened;
    struct pair *pair;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct piece *first, **last;
    size_t queued;
    bool ended, broken;
};

struct pair {
    struct direction up, down;
    atomic_int users;
    int client, server;
};

static double rtt = 0.05, rate = 200e6 / 8, line_rate = 1600e6 / 8;
static double line_free[2];
static pthread_mutex_t line_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int now_open, most_open;
static char host[64];
static int port;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void sleep_until(double when) {
    struct timespec at = {(time_t)when, (long)((when - (double)(time_t)when) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

/* When `size` bytes that may go at `ready` have left over the line that all share. */
static double over_line(bool up, double ready, size_t size) {
    pthread_mutex_lock(&line_lock);
    double start = line_free[up] > ready ? line_free[up] : ready;
    double end = line_free[up] = start + (double)size / line_rate;
    pthread_mutex_unlock(&line_lock);
    return end;
}

static void leave(struct pair *pair) {
    if (atomic_fetch_sub(&pair->users, 1) != 1)
        return;
    close(pair->client);
    close(pair->server);
    free(pair);
    atomic_fetch_sub(&now_open, 1);
}

static void *fill(void *argument) {
    struct direction *d = argument;
    size_t most = (size_t)(rate * rtt) + BLOCK;
    for (;;) {
        struct piece *piece = malloc(sizeof *piece + BLOCK);
        ssize_t got = recv(d->from, piece->data, BLOCK, 0);
        double arrived = now();
        pthread_mutex_lock(&d->lock);
        while (got > 0 && d->queued > most && !d->broken)
            pthread_cond_wait(&d->changed, &d->lock);
        bool over = got <= 0 || d->broken;
        if (over) {
            free(piece);
            d->ended = true;
        } else {
            double earliest = d->opened + rtt;
            piece->size = (size_t)got;
            piece->due = (arrived > earliest ? arrived : earliest) + rtt / 2;
            piece->next = NULL;
            *d->last = piece;
            d->last = &piece->next;
            d->queued += piece->size;
        }
        pthread_cond_broadcast(&d->changed);
        pthread_mutex_unlock(&d->lock);
        if (over)
            break;
    }
    leave(d->pair);
    return NULL;
}

static bool send_whole(int fd, const char *from, size_t size) {
    while (size) {
        ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        from += sent;
        size -= (size_t)sent;
    }
    return true;
}

static void *drain(void *argument) {
    struct direction *d = argument;
    double free_at = 0;
    for (;;) {
        pthread_mutex_lock(&d->lock);
        while (!d->first && !d->ended)
            pthread_cond_wait(&d->changed, &d->lock);
        struct piece *piece = d->first;
        if (piece && !(d->first = piece->next))
            d->last = &d->first;
        pthread_mutex_unlock(&d->lock);
        if (!piece)
            break;
        double start = piece->due > free_at ? piece->due : free_at;
        free_at = start + (double)piece->size / rate;
        /* who is not ready yet takes no place on the line that all share from those who are */
        sleep_until(start);
        /* what waits for the shared line may be caught up with: the pace stays the connection's */
        double shared = over_line(d->up, start, piece->size);
        sleep_until(shared > free_at ? shared : free_at);
        bool sent = send_whole(d->to, piece->data, piece->size);
        pthread_mutex_lock(&d->lock);
        d->queued -= piece->size;
        d->broken = !sent;
        pthread_cond_broadcast(&d->changed);
        pthread_mutex_unlock(&d->lock);
        free(piece);
        if (!sent) {
            shutdown(d->from, SHUT_RD);
            break;
        }
    }
    shutdown(d->to, SHUT_WR);
    leave(d->pair);
    return NULL;
}

static void begin(struct direction *d, struct pair *pair, int from, int to, bool up) {
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&small, 256 << 10);
    *d = (struct direction){.from = from, .to = to, .up = up, .pair = pair, .opened = now()};
    d->last = &d->first;
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->changed, NULL);
    if (pthread_create(&thread, &small, fill, d) || pthread_create(&thread, &small, drain, d))
        die("thread");
}

static void *tell_at_end(void *signals) {
    int got;
    sigwait(signals, &got);
    printf("%d\n", atomic_load(&most_open));
    fflush(stdout);
    _exit(0);
}

int main(int count, char **given) {
    int own = 0, window = 256 << 10;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(given[i], "--to") && sscanf(given[i + 1], "%63[^:]:%d", host, &port) == 2)
            continue;
        else if (!strcmp(given[i], "--port"))
            own = atoi(given[i + 1]);
        else if (!strcmp(given[i], "--rtt-ms"))
            rtt = atof(given[i + 1]) / 1e3;
        else if (!strcmp(given[i], "--mbit"))
            rate = atof(given[i + 1]) * 1e6 / 8;
        else if (!strcmp(given[i], "--line-mbit"))
            line_rate = atof(given[i + 1]) * 1e6 / 8;
        else
            die("unknown option");
    }
    static sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    pthread_t teller;
    pthread_create(&teller, NULL, tell_at_end, &signals);
    int listener = listen_and_tell(own);
    /* accepted sockets inherit it: more would be a line that swallows what it has not carried */
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &window, sizeof window);
    for (;;) {
        int client = accept(listener, NULL, NULL), one = 1;
        if (client < 0)
            continue;
        struct pair *pair = calloc(1, sizeof *pair);
        pair->client = client;
        pair->server = dial(host, port);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(pair->server, SOL_SOCKET, SO_RCVBUF, &window, sizeof window);
        atomic_init(&pair->users, 4);
        int open = atomic_fetch_add(&now_open, 1) + 1;
        if (open > atomic_load(&most_open))
            atomic_store(&most_open, open);
        begin(&pair->up, pair, client, pair->server, true);
        begin(&pair->down, pair, pair->server, client, false);
    }
}

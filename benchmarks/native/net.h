/* Blocking sockets with a read buffer, plain or TLS, and the little HTTP that all helpers share. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef MM_NET_H
#define MM_NET_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_LIMIT (64 << 10)

struct conn {
    int fd;
    SSL *ssl;
    size_t start, end; /* what was read and not yet used */
    char head[HEAD_LIMIT];
};

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(1);
}

/* At least one byte, 0 at the end of the stream, -1 for an error. */
static inline ssize_t raw_read(struct conn *c, char *into, size_t most) {
    if (c->ssl) {
        int got = SSL_read(c->ssl, into, most > (1 << 30) ? 1 << 30 : (int)most);
        return got > 0 ? got : SSL_get_error(c->ssl, got) == SSL_ERROR_ZERO_RETURN ? 0 : -1;
    }
    ssize_t got;
    do
        got = recv(c->fd, into, most, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

/* As raw_read, after what a head's read brought along. */
static inline ssize_t read_some(struct conn *c, char *into, size_t most) {
    size_t had = c->end - c->start;
    if (!had)
        return raw_read(c, into, most);
    if (had > most)
        had = most;
    memcpy(into, c->head + c->start, had);
    c->start += had;
    return (ssize_t)had;
}

static inline int write_all(struct conn *c, const char *from, size_t size) {
    while (size) {
        ssize_t sent;
        if (c->ssl)
            sent = SSL_write(c->ssl, from, size > (1 << 30) ? 1 << 30 : (int)size);
        else
            sent = send(c->fd, from, size, MSG_NOSIGNAL);
        if (sent <= 0) {
            if (sent < 0 && !c->ssl && errno == EINTR)
                continue;
            return -1;
        }
        from += sent;
        size -= (size_t)sent;
    }
    return 0;
}

/* Read one head into c->head, ended by a NUL; its length, or -1. What follows it stays unread. */
static inline ssize_t read_head(struct conn *c, char *into) {
    size_t have = c->end - c->start;
    memmove(c->head, c->head + c->start, have);
    c->start = 0;
    c->end = have;
    for (;;) {
        char *stop = have ? memmem(c->head, have, "\r\n\r\n", 4) : NULL;
        if (stop) {
            size_t length = (size_t)(stop - c->head) + 4;
            memcpy(into, c->head, length);
            into[length] = 0;
            c->start = length;
            c->end = have;
            return (ssize_t)length;
        }
        if (have >= HEAD_LIMIT - 1)
            return -1;
        ssize_t got = raw_read(c, c->head + have, HEAD_LIMIT - 1 - have);
        if (got <= 0)
            return -1;
        have += (size_t)got;
        c->end = have;
    }
}

/* The value of a header in `head`, copied to `into`; NULL without it. */
static inline char *header(const char *head, const char *name, char *into, size_t most) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        const char *at = line + 2;
        if (strncasecmp(at, name, length) || at[length] != ':')
            continue;
        at += length + 1;
        while (*at == ' ')
            at++;
        size_t size = strcspn(at, "\r");
        if (size >= most)
            size = most - 1;
        memcpy(into, at, size);
        into[size] = 0;
        return into;
    }
    return NULL;
}

static inline int dial(const char *host, int port) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, host, &where.sin_addr);
    if (fd < 0 || connect(fd, (struct sockaddr *)&where, sizeof where))
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* A listening socket on 127.0.0.1; the port that it got is printed for whoever started us. */
static inline int listen_and_tell(int port) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof where;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&where, sizeof where) || listen(fd, 1024))
        die("listen");
    getsockname(fd, (struct sockaddr *)&where, &size);
    printf("%d\n", ntohs(where.sin_port));
    fflush(stdout);
    return fd;
}

#endif

// cudahost_wire.h - how the ranks of a communicator reach each other: two sockets between every
// two ranks, so that it makes no difference whether they are threads or processes. One carries
// the host's handshakes, the other data. A message is sent when its receiver has said that it is
// ready, never before: rendezvous.
#ifndef CUDAHOST_WIRE_H
#define CUDAHOST_WIRE_H
#include "cuda_runtime.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

namespace cudahost {

// >>sockets
// Unix sockets in the abstract name space: no files to clean up, gone with their process.

inline socklen_t wire_address(const std::string &name, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    size_t bytes = name.size() < sizeof address->sun_path - 1 ? name.size()
                                                              : sizeof address->sun_path - 1;
    memcpy(address->sun_path + 1, name.data(), bytes);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + bytes);
}

inline int wire_socket() { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); }

inline int wire_listen(const std::string &name) {
    struct sockaddr_un address;
    socklen_t bytes = wire_address(name, &address);
    int fd = wire_socket();
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&address, bytes) == 0 && listen(fd, 64) == 0) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        return fd;
    }
    close(fd);
    return -1;
}

// -1 if nobody listens there yet.
inline int wire_connect(const std::string &name) {
    struct sockaddr_un address;
    socklen_t bytes = wire_address(name, &address);
    int fd = wire_socket();
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&address, bytes) == 0) return fd;
    close(fd);
    return -1;
}

// >>peers

enum { CONTROL, DATA, CHANNELS };
enum FrameKind { ReadyFrame = 1, DataFrame = 2 };

// The first thing that either side says.
struct Hello {
    uint32_t magic, count, rank, channel, device;
    uint64_t host;  // ranks on the same host must have different devices
};

// Says that bytes of an operation are expected, or that they follow.
struct Frame {
    uint32_t kind, operation;
    uint64_t bytes;
};

// The other end of a pair of ranks.
struct Peer {
    int fd[CHANNELS] = {-1, -1};
    std::set<char> said, heard;       // handshakes
    std::deque<Frame> ready;          // receives that the other side has announced
    std::vector<char> out, in;        // bytes on their way
    size_t sent = 0;
    bool lost = false;
};

// A message, seen from one of its ends.
struct Part {
    bool send;
    int peer;
    char *data;
    size_t bytes;
    uint32_t operation;               // both ends must be in the same one
    std::vector<char> staged;
    bool announced, done;
};

inline Part part(bool send, int peer, const void *data, size_t bytes, uint32_t operation) {
    return Part{send, peer, (char *)const_cast<void *>(data), bytes, operation, {}, false, false};
}

// What the ranks of one communicator have in common if they are in one process: a place for order
// per pair and direction.
struct World {
    std::map<std::pair<int, int>, char> order;
};

inline char *world_order(const std::string &name, int from, int to) {
    static std::map<std::string, World> *worlds = new std::map<std::string, World>;
    Locked hold(state().lock);
    return &(*worlds)[name].order[{from, to}];
}

// >>mesh

class Mesh {
  public:
    std::string name;
    int rank = 0, count = 0, device = 0;
    std::vector<Peer> peers;
    Relaxed<int> aborted;

    Mesh() {}
    ~Mesh() { hang_up(); }
    Mesh(const Mesh &) = delete;
    Mesh &operator=(const Mesh &) = delete;

    // Meets all other ranks; NULL or what went wrong.
    const char *join();
    // Tells the peer that its counterpart has come, or waits until the peer has said so.
    bool say_to(int peer, char what);
    bool hear_from(int peer, char what, const std::string &text);
    // Moves the messages of one step; NULL or what went wrong.
    const char *move(std::vector<Part> &parts, const std::string &text);
    // Ends all connections, so that the others notice.
    void hang_up();

  private:
    Hello hello(int channel) const;
    const char *greet(int fd, int expected_rank);
    const char *reach_lower(std::vector<int> &reached);
    const char *accept_higher(int listener, int *accepted);
    void announce(Part &one);
    void begin_send(Part &one);
    void finish_receive(Part &one);
    bool pump(Peer &peer);
    const char *take_frames(int from, std::vector<Part> &parts);
    void wait_for_bytes();
};

inline uint64_t host_identity() {
    uint64_t hash = 1;
    for (const char *c = setting("NCCL_HOSTID", ""); *c; c++)
        hash = scramble(hash ^ (uint64_t)(unsigned char)*c);
    return hash;
}

inline Hello Mesh::hello(int channel) const {
    return Hello{0x6d657368, (uint32_t)count, (uint32_t)rank, (uint32_t)channel, (uint32_t)device,
                 host_identity()};
}

inline bool read_all(int fd, void *to, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        struct pollfd one = {fd, POLLIN, 0};
        if (poll(&one, 1, 5000) <= 0) return false;
        ssize_t got = recv(fd, (char *)to + at, bytes - at, 0);
        if (got <= 0) return false;
        at += (size_t)got;
    }
    return true;
}

// Reads the other side's hello and takes the connection over.
inline const char *Mesh::greet(int fd, int expected_rank) {
    Hello other;
    const char *wrong = nullptr;
    if (!read_all(fd, &other, sizeof other)) wrong = "a rank went away during initialization";
    else if (other.magic != hello(0).magic || other.channel >= CHANNELS) wrong = "not a rank";
    else if (other.count != (uint32_t)count || other.rank >= (uint32_t)count ||
             other.rank == (uint32_t)rank ||
             (expected_rank >= 0 && other.rank != (uint32_t)expected_rank))
        wrong = "ranks disagree about how many they are";
    else if (other.host == host_identity() && other.device == (uint32_t)device)
        wrong = "duplicate GPU detected: two ranks on one device";
    if (wrong) {
        close(fd);
        return wrong;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    peers[other.rank].fd[other.channel] = fd;
    return nullptr;
}

inline bool send_hello(int fd, const Hello &hello) {
    return send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == (ssize_t)sizeof hello;
}

// Connects to those ranks below that listen by now.
inline const char *Mesh::reach_lower(std::vector<int> &reached) {
    for (int to = 0; to < rank; to++)
        while (reached[(size_t)to] < CHANNELS) {
            int fd = wire_connect(name + "." + std::to_string(to));
            if (fd < 0) break;
            if (!send_hello(fd, hello(reached[(size_t)to]++))) {
                close(fd);
                return "a rank went away during initialization";
            }
            const char *wrong = greet(fd, to);
            if (wrong) return wrong;
        }
    return nullptr;
}

inline const char *Mesh::accept_higher(int listener, int *accepted) {
    for (;;) {
        int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) return nullptr;
        Hello other;
        if (recv(fd, &other, sizeof other, MSG_PEEK | MSG_WAITALL) != (ssize_t)sizeof other ||
            !send_hello(fd, hello((int)other.channel))) {
            close(fd);
            return "a rank went away during initialization";
        }
        const char *wrong = greet(fd, -1);
        if (wrong) return wrong;
        ++*accepted;
    }
}

inline const char *Mesh::join() {
    Quiet quiet;
    std::vector<int> reached((size_t)count);
    int accepted = 0, wanted = (count - 1 - rank) * CHANNELS, missing;
    const char *wrong = nullptr;
    peers.resize((size_t)count);
    int listener = wire_listen(name + "." + std::to_string(rank));
    if (listener < 0) return "two processes or threads claim the same rank";
    Patience patience("initialization of rank " + std::to_string(rank) + " of " + name);
    do {
        missing = wanted - accepted;
        for (int to = 0; to < rank; to++) missing += CHANNELS - reached[(size_t)to];
        if (!missing || wrong) break;
        wrong = reach_lower(reached);
        if (!wrong) wrong = accept_higher(listener, &accepted);
        if (!wrong && aborted.get()) wrong = "aborted";
        if (!wrong && patience.lost()) wrong = "not all ranks came";
        usleep(500);
    } while (true);
    close(listener);
    progress();
    return wrong;
}

inline void Mesh::hang_up() {
    Quiet quiet;
    for (Peer &peer : peers)
        for (int &fd : peer.fd) {
            if (fd >= 0) close(fd);
            fd = -1;
        }
}

// >>handshakes

inline bool Mesh::say_to(int to, char what) {
    Quiet quiet;
    Peer &peer = peers[(size_t)to];
    if (!peer.said.insert(what).second) return true;
    return send(peer.fd[CONTROL], &what, 1, MSG_NOSIGNAL) == 1;
}

inline bool Mesh::hear_from(int from, char what, const std::string &text) {
    Quiet quiet;
    Peer &peer = peers[(size_t)from];
    if (peer.heard.count(what)) return true;
    Patience patience(text);
    while (!peer.heard.count(what)) {
        struct pollfd one = {peer.fd[CONTROL], POLLIN, 0};
        poll(&one, 1, 5);
        char heard;
        ssize_t got = recv(peer.fd[CONTROL], &heard, 1, 0);
        if (got == 1) peer.heard.insert(heard);
        else if (got == 0 || aborted.get() || patience.lost()) return false;
    }
    progress();
    return true;
}

// >>messages

inline void put_frame(Peer &peer, const Frame &frame) {
    peer.out.insert(peer.out.end(), (const char *)&frame, (const char *)(&frame + 1));
}

inline void Mesh::announce(Part &one) {
    Quiet quiet;
    one.announced = true;
    if (!one.send) put_frame(peers[(size_t)one.peer],
                             Frame{ReadyFrame, one.operation, one.bytes});
}

// The receiver is ready. The sanitizers see that we read the buffer now.
inline void Mesh::begin_send(Part &one) {
    one.staged.assign(one.data, one.data + one.bytes);
    publish(world_order(name, rank, one.peer));
    Quiet quiet;
    Peer &peer = peers[(size_t)one.peer];
    put_frame(peer, Frame{DataFrame, one.operation, one.bytes});
    peer.out.insert(peer.out.end(), one.staged.begin(), one.staged.end());
    one.done = true;
    progress();
}

inline void Mesh::finish_receive(Part &one) {
    observe(world_order(name, one.peer, rank));
    if (one.bytes) memcpy(one.data, one.staged.data(), one.bytes);
    one.done = true;
    progress();
}

// Moves what can be moved; false if the peer is gone.
inline bool Mesh::pump(Peer &peer) {
    Quiet quiet;
    char buffer[1 << 16];
    int fd = peer.fd[DATA];
    if (fd < 0 || peer.lost) return false;
    while (peer.sent < peer.out.size()) {
        ssize_t put = send(fd, peer.out.data() + peer.sent, peer.out.size() - peer.sent,
                           MSG_NOSIGNAL);
        if (put < 0 && errno != EAGAIN) peer.lost = true;
        if (put <= 0) break;
        peer.sent += (size_t)put;
    }
    if (peer.sent == peer.out.size()) peer.out.clear(), peer.sent = 0;
    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got > 0) peer.in.insert(peer.in.end(), buffer, buffer + got);
        if (got == 0 || (got < 0 && errno != EAGAIN)) peer.lost = true;
        if (got <= 0) break;
    }
    return true;
}

// Interprets what has come from one rank.
inline const char *Mesh::take_frames(int from, std::vector<Part> &parts) {
    Peer &peer = peers[(size_t)from];
    for (;;) {
        Frame frame;
        {
            Quiet quiet;
            if (peer.in.size() < sizeof frame) return nullptr;
            memcpy(&frame, peer.in.data(), sizeof frame);
            size_t whole = sizeof frame + (frame.kind == DataFrame ? frame.bytes : 0);
            if (peer.in.size() < whole) return nullptr;
        }
        Part *target = nullptr;
        for (Part &one : parts)
            if (!target && !one.send && !one.done && one.peer == from) target = &one;
        if (frame.kind == DataFrame && !target) return "data that nobody waits for";
        if (frame.kind == DataFrame) {
            Quiet quiet;
            target->staged.assign(peer.in.begin() + sizeof frame,
                                  peer.in.begin() + (long)(sizeof frame + frame.bytes));
        }
        if (frame.kind == DataFrame) finish_receive(*target);
        Quiet quiet;
        if (frame.kind == ReadyFrame) peer.ready.push_back(frame);
        size_t whole = sizeof frame + (frame.kind == DataFrame ? frame.bytes : 0);
        peer.in.erase(peer.in.begin(), peer.in.begin() + (long)whole);
    }
}

inline void Mesh::wait_for_bytes() {
    Quiet quiet;
    std::vector<struct pollfd> all;
    for (Peer &peer : peers)
        if (peer.fd[DATA] >= 0 && !peer.lost) {
            short events = peer.out.empty() ? POLLIN : POLLIN | POLLOUT;
            all.push_back({peer.fd[DATA], events, 0});
        }
    poll(all.data(), all.size(), 5);
}

// The first send to a peer goes out when the peer's first receive is announced, and so on.
inline const char *Mesh::move(std::vector<Part> &parts, const std::string &text) {
    Patience patience(text);
    for (Part &one : parts) announce(one);
    for (;;) {
        bool all_done = true, flushed = true;
        for (Part &one : parts) {
            Peer &peer = peers[(size_t)one.peer];
            bool pumped = pump(peer);
            const char *wrong = take_frames(one.peer, parts);
            if (wrong) return wrong;
            if (!one.done && one.send && !peer.ready.empty()) {
                Frame frame = peer.ready.front();
                if (frame.bytes != one.bytes || frame.operation != one.operation)
                    return "the two ends do not agree about a message";
                peer.ready.pop_front();
                begin_send(one);
            }
            all_done = all_done && one.done;
            flushed = flushed && peer.out.empty();
            if ((!pumped || peer.lost) && (!one.done || !peer.out.empty()))
                return "the other rank is gone";
        }
        if (all_done && flushed) return nullptr;
        if (aborted.get()) return "aborted";
        if (patience.lost()) return "nothing moved";
        wait_for_bytes();
    }
}

} // namespace cudahost
#endif

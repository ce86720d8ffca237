// cudahost_stream.h - streams, events, captures and graphs. A stream is a thread that does what is
// in its queue; all streams of all devices run at once.
#ifndef CUDAHOST_STREAM_H
#define CUDAHOST_STREAM_H
#include "cudahost_fiber.h"

namespace cudahost {

// One operation. It may run often, if it is in a graph.
struct Op {
    const char *name;           // outlives the operation
    std::function<void()> run;
    bool always = false;        // also on a device that has failed: others wait for it
};

// One recording of an event.
struct Record {
    std::mutex lock;
    std::condition_variable changed;
    bool done = false;
    Clock::time_point time;
    char order = 0;             // published by who recorded, observed by who waited

    void finish() {
        publish(&order);
        Locked hold(lock);
        done = true;
        time = Clock::now();
        changed.notify_all();
    }
    bool wait(const std::string &what) {
        {
            Locked hold(lock);
            if (!wait_until(hold.lock, changed, what, [this] { return done; })) return false;
        }
        observe(&order);
        return true;
    }
    bool finished() {
        {
            Locked hold(lock);
            if (!done) return false;
        }
        observe(&order);
        return true;
    }
};

struct Capture;

struct Event {
    int device;
    bool timed;
    Ref<Record> latest;   // empty: never recorded
    Ref<Capture> capture; // set if it was last recorded in a capture,
    std::vector<int> nodes;           // after these nodes
};

// A captured operation. `after` are earlier nodes, so issue order is one possible order.
struct Node {
    Op op;
    int device, lane;
    std::vector<int> after;
    Event *record = nullptr, *wait = nullptr;  // external events are looked up at each launch
};

struct Graph {
    std::vector<Node> nodes;
    int lanes = 0;
};

struct Capture {
    Graph graph;
    Stream *origin = nullptr;
    std::set<Stream *> joined;
    std::thread::id thread;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    bool invalid = false, ended = false;
};

// Says what the operations on this thread run for: a stream, or a lane of a graph.
inline Runner change_runner(Runner next) {
    Quiet quiet;
    std::swap(self.runner, next);
    return next;
}

struct Stream {
    int device, id, priority;
    std::mutex lock;
    std::condition_variable changed;
    std::deque<std::unique_ptr<Op>> queue;
    uint64_t issued = 0, done = 0;
    bool closing = false;
    char order = 0;                        // published after every operation
    Ref<Capture> capture;      // guarded by the state's lock, as are
    std::vector<int> frontier;             // the nodes that the next one comes after
    int lane = 0;
    Crew crew;
    std::thread worker;

    Stream(int on, int level) : device(on), priority(level) {
        static Relaxed<int> count;
        id = count.add(1);
        worker = std::thread([this] { loop(); });
    }
    ~Stream() {
        Quiet quiet;
        {
            std::lock_guard<std::mutex> hold(lock);
            closing = true;
            changed.notify_all();
        }
        worker.join();
    }
    std::string text(const char *what) const {
        return std::string(what) + " in stream " + std::to_string(id) + " of device " +
               std::to_string(device);
    }

    // Appends to the queue, or to the graph if the stream is being captured.
    void submit(const char *name, std::function<void()> run, bool always = false) {
        Node node{{name, std::move(run), always}, device, 0, {}};
        if (!capture_node(node)) enqueue(name, std::move(node.op.run), always);
    }
    void enqueue(const char *name, std::function<void()> run, bool always = false) {
        Op *op;
        {
            Quiet quiet;
            op = new Op{name, std::move(run), always};
        }
        publish(op);
        Locked hold(lock);
        queue.emplace_back(op);
        issued++;
        changed.notify_all();
    }
    // True if the stream is being captured and the node was added.
    bool capture_node(Node &node) {
        Locked hold(state().lock);
        if (!capture) return false;
        node.lane = lane;
        node.after = frontier;
        frontier.assign(1, (int)capture->graph.nodes.size());
        capture->graph.nodes.push_back(std::move(node));
        return true;
    }
    // Waits for all that was issued so far.
    bool drain(const char *why) {
        {
            Locked hold(lock);
            uint64_t target = issued;
            if (!wait_until(hold.lock, changed, text(why), [&] { return done >= target; }))
                return false;
        }
        observe(&order);
        return true;
    }
    bool idle() {
        {
            Locked hold(lock);
            if (done < issued) return false;
        }
        observe(&order);
        return true;
    }

  private:
    Op *next() {
        Locked hold(lock);
        changed.wait(hold.lock, [this] { return closing || !queue.empty(); });
        if (queue.empty()) return nullptr;
        Op *op = queue.front().release();
        queue.pop_front();
        return op;
    }
    void loop() {
        self.host.device = device;
        change_runner(Runner{device, &crew});
        for (uint64_t count = 0; Op *op = next(); count++) {
            observe(op);
            jitter((uint64_t)id, count);
            take_time();
            if (state().settings.verbose > 1) say(2, "%s", text(op->name).c_str());
            if (op->always || fault_of(device) == cudaSuccess) op->run();
            publish(&order);
            cudahost::progress();
            Quiet quiet;  // what the operation owned must not order those who shared it
            delete op;
            std::lock_guard<std::mutex> hold(lock);
            done++;
            changed.notify_all();
        }
    }
};

// >>checks
// The start of every call: counts it, and tells of what went wrong before.

inline cudaError_t enter(const char *api) {
    if (planned(api)) return failed(cudaErrorUnknown);
    if (device_count() == 0) return failed(cudaErrorNoDevice);
    return failed(fault_of(self.host.device));
}

inline bool usable(const char *api, Stream *stream) {
    if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
        say(1, "%s in the NULL stream, which this stand-in refuses", api);
        return false;
    }
    if (alive(stream, Streams)) return true;
    say(1, "%s in a stream that does not exist", api);
    return false;
}

inline cudaError_t enter_stream(const char *api, Stream *stream) {
    if (planned(api)) return failed(cudaErrorUnknown);
    if (!usable(api, stream)) return failed(cudaErrorInvalidResourceHandle);
    return failed(fault_of(stream->device));
}

// >>events

inline void wait_in_stream(int device, const Ref<Record> &record) {
    if (!record->wait("cudaStreamWaitEvent for device " + std::to_string(device)))
        device_fault(device, cudaErrorLaunchTimeout, "an event was waited for in vain");
}

inline Ref<Record> renew(Event *event) {
    Ref<Record> record = Ref<Record>::make();
    Locked hold(state().lock);
    event->capture = Ref<Capture>();
    event->latest = record;
    return record;
}

inline Ref<Record> latest(Event *event) {
    Locked hold(state().lock);
    return event->latest;
}

// True if the stream is being captured: the event then stands for what was captured so far.
inline bool record_in_capture(Event *event, Stream *stream) {
    Locked hold(state().lock);
    if (!stream->capture) return false;
    event->capture = stream->capture;
    event->nodes = stream->frontier;
    return true;
}

inline void record_event(Event *event, Stream *stream, bool external) {
    if (!external && record_in_capture(event, stream)) return;
    Node node{{"event record", nullptr, true}, stream->device, 0, {}};
    node.record = event;
    if (stream->capture_node(node)) return;
    Ref<Record> record = renew(event);
    stream->enqueue("event record", [record] { record->finish(); }, true);
}

// A stream that waits for an event of a capture takes part in that capture.
// Call with the state's lock held.
inline cudaError_t join_capture(Stream *stream, Event *event) {
    Ref<Capture> capture = event->capture;
    if (stream->capture && !(stream->capture == capture)) {
        stream->capture->invalid = capture->invalid = true;
        return cudaErrorStreamCaptureMerge;
    }
    if (!stream->capture) {
        stream->capture = capture;
        stream->lane = capture->graph.lanes++;
        stream->frontier.clear();
        capture->joined.insert(stream);
    }
    for (int node : event->nodes) {
        bool known = false;
        for (int other : stream->frontier) known |= other == node;
        if (!known) stream->frontier.push_back(node);
    }
    return cudaSuccess;
}

// The part of a wait that concerns captures; true if that was all.
inline bool wait_in_capture(Stream *stream, Event *event, cudaError_t *error) {
    Locked hold(state().lock);
    *error = cudaSuccess;
    if (event->capture) {
        *error = event->capture->ended ? cudaErrorCapturedEvent : join_capture(stream, event);
        return true;
    }
    if (!stream->capture) return false;
    stream->capture->invalid = true;
    *error = cudaErrorStreamCaptureIsolation;
    return true;
}

inline cudaError_t wait_event(Stream *stream, Event *event, bool external) {
    cudaError_t error;
    if (!external && wait_in_capture(stream, event, &error)) return error;
    Node node{{"event wait", nullptr, true}, stream->device, 0, {}};
    node.wait = event;
    if (stream->capture_node(node)) return cudaSuccess;
    Ref<Record> record = latest(event);
    int device = stream->device;
    if (record)
        stream->enqueue("event wait", [device, record] { wait_in_stream(device, record); }, true);
    return cudaSuccess;
}

// >>capture

// The capture that makes an unsafe call illegal for this thread: its own stream's, one that the
// thread began, or one that somebody began in global mode. Everything it spoils ends invalid.
inline bool spoils_capture(Stream *stream) {
    State &s = state();
    Locked hold(s.lock);
    bool spoilt = false;
    for (auto &device : s.devices)
        for (Stream *one : device->streams) {
            if (!one->capture) continue;
            Capture &capture = *one->capture;
            bool mine = capture.thread == std::this_thread::get_id() &&
                        capture.mode != cudaStreamCaptureModeRelaxed;
            if (one == stream || mine || capture.mode == cudaStreamCaptureModeGlobal)
                spoilt = capture.invalid = true;
        }
    return spoilt;
}

inline cudaError_t begin_capture(Stream *stream, cudaStreamCaptureMode mode) {
    Locked hold(state().lock);
    if (stream->capture) {
        stream->capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    stream->capture = Ref<Capture>::make();
    stream->capture->origin = stream;
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->mode = mode;
    stream->capture->graph.lanes = 1;
    stream->frontier.clear();
    stream->lane = 0;
    return cudaSuccess;
}

// Whether every node leads to the frontier, that is, every fork was joined.
inline bool all_joined(const Graph &graph, const std::vector<int> &frontier) {
    std::vector<char> reached(graph.nodes.size());
    for (int node : frontier) reached[(size_t)node] = 1;
    for (size_t i = graph.nodes.size(); i-- > 0;) {
        if (!reached[i]) return false;
        for (int before : graph.nodes[i].after) reached[(size_t)before] = 1;
    }
    return true;
}

inline cudaError_t end_capture(Stream *stream, Graph **graph) {
    *graph = nullptr;
    Ref<Capture> capture;
    Locked hold(state().lock);
    capture = stream->capture;
    if (!capture || capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
    if (capture->thread != std::this_thread::get_id() &&
        capture->mode != cudaStreamCaptureModeRelaxed)
        return cudaErrorStreamCaptureWrongThread;
    bool joined = all_joined(capture->graph, stream->frontier);
    capture->ended = true;
    for (Stream *one : capture->joined) one->capture = Ref<Capture>();
    stream->capture = Ref<Capture>();
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!joined) return cudaErrorStreamCaptureUnjoined;
    *graph = new Graph(capture->graph);
    state().handles[*graph] = Graphs;
    return cudaSuccess;
}

// >>graphs
// A graph runs on the thread of the stream it is launched in, node after node. What was captured
// in other streams may run beside that on a device, so for the thread sanitizer each such lane is a
// thread, with its own stack and shared variables, which does its nodes when it is told to, and being
// told orders nothing. With CUDAHOST_JITTER the nodes run in any order that is allowed.

struct GraphLaunch;
inline void run_node(GraphLaunch &launch, size_t i, const char *begin);

struct GraphLane {
    Crew crew;
#ifdef CUDAHOST_TSAN
    struct Job {
        GraphLaunch *launch;
        size_t node;
        const char *begin;
        int device;
    };
    std::mutex lock;
    std::condition_variable changed;
    Job job{};
    bool busy = false, closing = false;
    std::thread worker;

    GraphLane() {
        worker = std::thread([this] { loop(); });
    }
    ~GraphLane() {
        {
            Locked hold(lock);
            closing = true;
            changed.notify_all();
        }
        worker.join();
    }
    void run(const Job &one) {
        Locked hold(lock);
        job = one;
        busy = true;
        changed.notify_all();
        changed.wait(hold.lock, [this] { return !busy; });
    }

  private:
    bool next(Job *one) {
        Locked hold(lock);
        changed.wait(hold.lock, [this] { return busy || closing; });
        *one = job;
        return busy;
    }
    CUDAHOST_UNSEEN void loop() {
        Job one;
        while (next(&one)) {
            self.host.device = one.device;
            change_runner(Runner{one.device, &crew});
            run_node(*one.launch, one.node, one.begin);
            Locked hold(lock);
            busy = false;
            changed.notify_all();
        }
    }
#endif
};

struct Program {
    std::vector<Node> nodes;
    std::vector<std::unique_ptr<GraphLane>> lanes;  // but for lane 0, which is the stream's own
    std::vector<char> order;   // one place per node, and one for the launch
    std::mutex running;        // a program does not run beside itself
    uint64_t launches = 0;
};

// The program outlives its handle while it is queued somewhere.
struct GraphExec {
    Ref<Program> program = Ref<Program>::make();

    explicit GraphExec(const Graph &graph) {
        program->nodes = graph.nodes;
        program->order.resize(graph.nodes.size() + 1);
        for (int i = 1; i < graph.lanes; i++) program->lanes.emplace_back(new GraphLane);
    }
};

struct GraphLaunch {
    Ref<Program> program;
    std::vector<Ref<Record>> records;  // of external events, by node
};

inline void run_node(GraphLaunch &launch, size_t i, const char *begin) {
    observe(begin);
    Program &program = *launch.program;
    const Node &node = program.nodes[i];
    for (int before : node.after) observe(&program.order[(size_t)before]);
    say(2, "%s in a graph", node.op.name);
    take_time();
    if (node.record) launch.records[i]->finish();
    else if (node.wait && launch.records[i]) wait_in_stream(node.device, launch.records[i]);
    else if (node.op.run && fault_of(node.device) == cudaSuccess) node.op.run();
    publish(&program.order[i]);
    progress();
}

inline void run_in_lane(GraphLaunch &launch, size_t i) {
    Program &program = *launch.program;
    const char *begin = &program.order[program.nodes.size()];
    int number = program.nodes[i].lane, device = program.nodes[i].device;
    if (number == 0) return run_node(launch, i, begin);
    GraphLane &lane = *program.lanes[(size_t)number - 1];
#ifdef CUDAHOST_TSAN
    lane.run(GraphLane::Job{&launch, i, begin, device});
#else
    Runner before = change_runner(Runner{device, &lane.crew});
    run_node(launch, i, begin);
    change_runner(before);
#endif
}

// The nodes' indices in an order that respects `after`: as issued, or by chance.
inline std::vector<size_t> node_order(const Program &program) {
    std::vector<size_t> order, ready;
    std::vector<char> done(program.nodes.size()), listed(program.nodes.size());
    bool chance = state().settings.jitter != 0;
    for (uint64_t step = 0; order.size() < program.nodes.size(); step++) {
        for (size_t i = 0; i < program.nodes.size(); i++) {
            bool can = !listed[i];
            for (int before : program.nodes[i].after) can = can && done[(size_t)before];
            if (!can) continue;
            listed[i] = 1;
            ready.push_back(i);
            if (!chance) break;
        }
        size_t pick = chance ? scramble(program.launches * 7919 + step) % ready.size() : 0;
        done[ready[pick]] = 1;
        order.push_back(ready[pick]);
        ready.erase(ready.begin() + (long)pick);
    }
    return order;
}

inline void run_graph(GraphLaunch &launch) {
    Program &program = *launch.program;
    std::vector<size_t> order;
    {
        Quiet quiet;
        program.running.lock();
        program.launches++;
        order = node_order(program);
    }
    for (size_t i : order) observe(&program.order[i]);  // the launch before, in whatever stream
    publish(&program.order[program.nodes.size()]);
    for (size_t i : order) run_in_lane(launch, i);
    for (size_t i : order) observe(&program.order[i]);
    Quiet quiet;
    program.running.unlock();
}

inline void launch_graph(GraphExec *exec, Stream *stream) {
    Ref<GraphLaunch> launch = Ref<GraphLaunch>::make();
    std::vector<Node> &nodes = exec->program->nodes;
    launch->program = exec->program;
    launch->records.resize(nodes.size());
    for (size_t i = 0; i < nodes.size(); i++) {
        if (nodes[i].record) launch->records[i] = renew(nodes[i].record);
        else if (nodes[i].wait) launch->records[i] = latest(nodes[i].wait);
    }
    stream->submit("graph", [launch] { run_graph(*launch); }, true);
}

} // namespace cudahost
#endif

// C interface of a verilated accelerator: packets in, packets out, registers, clock cycles.
// Built together with the emitted Verilog by sigbit_sim.rtl; loaded with ctypes.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "Vsigbit.h"
#include "Vsigbit___024root.h"
#include "verilated.h"
#ifdef SIGBIT_SAIF
#include "verilated_saif_c.h"
#endif

namespace {

constexpr size_t kBeatBytes = SIGBIT_STREAM_BITS / 8;
constexpr uint64_t kKeepAll = kBeatBytes == 64 ? ~0ull : (1ull << kBeatBytes) - 1;

struct Transfer {
    std::vector<uint8_t> bytes;
    bool last;
};

// Instructions retired, then the performance counters in the order of their registers.
using Counters = std::array<uint32_t, SIGBIT_COUNTERS + 1>;

struct Accelerator {
    std::unique_ptr<VerilatedContext> context{new VerilatedContext};
    std::unique_ptr<Vsigbit> top{new Vsigbit{context.get()}};
    std::deque<Transfer> to_send;
    size_t sent_bytes = 0;
    std::vector<uint8_t> partial;
    std::deque<std::vector<uint8_t>> received;
    uint64_t cycles = 0;
    uint64_t random = 0;
    uint32_t idle_percent = 0, backpressure_percent = 0;
    std::deque<uint32_t> marks;
    std::vector<Counters> snapshots;
#ifdef SIGBIT_SAIF
    std::unique_ptr<VerilatedSaifC> activity;
#endif

    // The clock's edges are at even and odd times.
    void dump(uint64_t edge) {
#ifdef SIGBIT_SAIF
        if (activity) activity->dump(2 * cycles + edge);
#else
        (void)edge;
#endif
    }

    bool chance(uint32_t percent) {
        if (!percent) return false;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return random % 100 < percent;
    }

    Counters registers() const {
        Counters values;
        values[0] = top->rootp->sigbit__DOT__core__DOT__registers__DOT__instructions;
        for (size_t i = 0; i < SIGBIT_COUNTERS; ++i) values[i + 1] = top->rootp->sigbit__DOT__core__DOT__registers__DOT__counters[i];
        return values;
    }

    // One clock cycle; the handshakes of the cycle are seen before its rising edge.
    void tick() {
        if (!top->s_axis_tvalid && !to_send.empty() && !chance(idle_percent)) {
            const auto& transfer = to_send.front();
            const size_t size = std::min(kBeatBytes, transfer.bytes.size() - sent_bytes);
            std::memset(&top->s_axis_tdata, 0, kBeatBytes);
            std::memcpy(&top->s_axis_tdata, transfer.bytes.data() + sent_bytes, size);
            top->s_axis_tkeep = size == kBeatBytes ? kKeepAll : (1ull << size) - 1;
            top->s_axis_tlast = transfer.last && sent_bytes + size == transfer.bytes.size();
            top->s_axis_tvalid = 1;
        }
        top->m_axis_tready = !chance(backpressure_percent);
        top->aclk = 0;
        top->eval();
        const bool taken = top->s_axis_tvalid && top->s_axis_tready;
        if (top->m_axis_tvalid && top->m_axis_tready) {
            const auto* data = reinterpret_cast<const uint8_t*>(&top->m_axis_tdata);
            partial.insert(partial.end(), data, data + kBeatBytes);
            if (top->m_axis_tlast) {
                received.push_back(std::move(partial));
                partial.clear();
            }
        }
        dump(0);
        top->aclk = 1;
        top->eval();
        dump(1);
        ++cycles;
        while (!marks.empty() && registers()[0] >= marks.front()) {
            snapshots.push_back(registers());
            marks.pop_front();
        }
        if (taken) {
            top->s_axis_tvalid = 0;
            sent_bytes += kBeatBytes;
            if (sent_bytes >= to_send.front().bytes.size()) {
                to_send.pop_front();
                sent_bytes = 0;
            }
        }
    }
};

}  // namespace

extern "C" {

Accelerator* sigbit_new() {
    auto* a = new Accelerator;
#ifdef SIGBIT_SAIF
    a->context->traceEverOn(true);
#endif
    auto& top = *a->top;
    top.aclk = top.s_axis_tvalid = top.s_axil_awvalid = top.s_axil_wvalid = top.s_axil_arvalid = 0;
    top.s_axil_bready = top.s_axil_rready = 1;
    top.s_axil_wstrb = 15;
    top.aresetn = 0;
    for (int i = 0; i < 4; ++i) a->tick();
    top.aresetn = 1;
    a->cycles = 0;
    return a;
}

void sigbit_free(Accelerator* a) {
    // Scopes leave the context of the thread, which is that of the model made last and may be gone.
    Verilated::threadContextp(a->context.get());
    a->top->final();
    delete a;
}

// From now to the end every change of a traced signal is counted; 0 if the library was built without.
int sigbit_activity(Accelerator* a, const char* path, int levels) {
#ifdef SIGBIT_SAIF
    if (path) {
        a->activity.reset(new VerilatedSaifC);
        a->top->trace(a->activity.get(), levels);
        a->activity->open(path);
    } else if (a->activity) {
        a->activity->close();
        a->activity.reset();
    }
    return 1;
#else
    (void)a, (void)path, (void)levels;
    return 0;
#endif
}

uint64_t sigbit_cycles(Accelerator* a) { return a->cycles; }

int sigbit_interrupt(Accelerator* a) { return a->top->irq; }

void sigbit_stalls(Accelerator* a, uint64_t seed, uint32_t idle_percent, uint32_t backpressure_percent) {
    a->random = seed | 1;
    a->idle_percent = idle_percent;
    a->backpressure_percent = backpressure_percent;
}

// Queues bytes; they are driven from the next cycle on. A last beat that they do not fill is sent with as many TKEEP bits.
void sigbit_send(Accelerator* a, const uint8_t* data, size_t size, int last) {
    a->to_send.push_back({{data, data + size}, last != 0});
}

// Transfers queued that have not been taken whole.
size_t sigbit_pending(Accelerator* a) { return a->to_send.size(); }

// Beats not yet taken by the accelerator are dropped, as after a stopped DMA transfer.
void sigbit_discard(Accelerator* a) {
    a->to_send.clear();
    a->sent_bytes = 0;
    a->top->s_axis_tvalid = 0;
    a->partial.clear();
    a->received.clear();
}

// Runs until a packet has been received, everything is sent (if asked for), an interrupt is raised or the limit is reached.
void sigbit_run(Accelerator* a, uint64_t max_cycles, int until_sent) {
    const uint64_t end = a->cycles + max_cycles;
    while (a->cycles < end && a->received.empty() && !a->top->irq && !(until_sent && a->to_send.empty())) a->tick();
}

// From now on the counters are kept as they are when so many instructions have been retired; numbers ascend.
void sigbit_mark(Accelerator* a, const uint32_t* instructions, size_t count) {
    a->marks.assign(instructions, instructions + count);
    a->snapshots.clear();
}

size_t sigbit_snapshots(Accelerator* a) { return a->snapshots.size(); }

void sigbit_snapshot(Accelerator* a, size_t index, uint32_t* values) {
    std::copy(a->snapshots[index].begin(), a->snapshots[index].end(), values);
}

size_t sigbit_received_bytes(Accelerator* a) { return a->received.empty() ? 0 : a->received.front().size(); }

void sigbit_receive(Accelerator* a, uint8_t* data) {
    std::memcpy(data, a->received.front().data(), a->received.front().size());
    a->received.pop_front();
}

int sigbit_write(Accelerator* a, uint32_t address, uint32_t value) {
    auto& top = *a->top;
    top.s_axil_awaddr = address;
    top.s_axil_wdata = value;
    top.s_axil_awvalid = top.s_axil_wvalid = 1;
    for (int i = 0; i < 64; ++i) {
        top.aclk = 0;
        top.eval();
        const bool aw = top.s_axil_awvalid && top.s_axil_awready, w = top.s_axil_wvalid && top.s_axil_wready;
        const bool done = top.s_axil_bvalid;
        a->tick();
        if (aw) top.s_axil_awvalid = 0;
        if (w) top.s_axil_wvalid = 0;
        if (done) return 0;
    }
    return 1;
}

int sigbit_read(Accelerator* a, uint32_t address, uint32_t* value) {
    auto& top = *a->top;
    top.s_axil_araddr = address;
    top.s_axil_arvalid = 1;
    for (int i = 0; i < 64; ++i) {
        top.aclk = 0;
        top.eval();
        const bool ar = top.s_axil_arvalid && top.s_axil_arready, done = top.s_axil_rvalid;
        *value = top.s_axil_rdata;
        a->tick();
        if (ar) top.s_axil_arvalid = 0;
        if (done) return 0;
    }
    return 1;
}
}

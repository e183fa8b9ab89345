// C interface of a verilated accelerator behind UART lines: characters in, characters out, BREAK, clock cycles.
// Built together with the Verilog of the bridge by sigbit_sim.serial; loaded with ctypes.

#include <cstdint>
#include <deque>
#include <memory>

#include "Vsigbit.h"
#include "verilated.h"

namespace {

constexpr uint32_t kBitCycles = SIGBIT_BIT_CYCLES;

// A level of the line to the accelerator, and for how many bit times.
struct Level {
    bool high;
    uint32_t bits;
};

struct Serial {
    std::unique_ptr<VerilatedContext> context{new VerilatedContext};
    std::unique_ptr<Vsigbit> top{new Vsigbit{context.get()}};
    std::deque<Level> to_send;
    uint32_t level_cycles = 0;
    std::deque<uint8_t> received;
    // Of the character that arrives: cycles since its start bit began; 0 between characters.
    uint32_t arriving = 0;
    uint8_t character = 0;
    uint64_t framing_errors = 0;
    uint64_t cycles = 0;

    void tick() {
        if (!to_send.empty()) {
            top->rx = to_send.front().high;
            if (++level_cycles == to_send.front().bits * kBitCycles) {
                to_send.pop_front();
                level_cycles = 0;
            }
        } else {
            top->rx = 1;
        }
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
        ++cycles;
        if (!arriving && top->tx) return;
        // Sampled in the middle of every bit.
        const uint32_t bit = arriving / kBitCycles;
        if (arriving++ % kBitCycles != kBitCycles / 2) return;
        if (bit == 0) {
            if (top->tx) arriving = 0;
        } else if (bit <= 8) {
            character = character >> 1 | (top->tx ? 0x80 : 0);
        } else {
            if (top->tx)
                received.push_back(character);
            else
                ++framing_errors;
            arriving = 0;
        }
    }
};

}  // namespace

extern "C" {

Serial* serial_new() {
    auto* s = new Serial;
    s->top->rx = 1;
    s->top->rst = 1;
    for (int i = 0; i < 4; ++i) s->tick();
    s->top->rst = 0;
    s->cycles = 0;
    return s;
}

void serial_free(Serial* s) {
    // Scopes leave the context of the thread, which is that of the model made last and may be gone.
    Verilated::threadContextp(s->context.get());
    s->top->final();
    delete s;
}

uint64_t serial_cycles(Serial* s) { return s->cycles; }

uint64_t serial_framing_errors(Serial* s) { return s->framing_errors; }

void serial_write(Serial* s, const uint8_t* data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        s->to_send.push_back({false, 1});
        for (int bit = 0; bit < 8; ++bit) s->to_send.push_back({(data[i] >> bit & 1) != 0, 1});
        s->to_send.push_back({true, 1});
    }
}

// The line is low for so many bit times, then high for one.
void serial_break(Serial* s, uint32_t bits) {
    s->to_send.push_back({false, bits});
    s->to_send.push_back({true, 1});
}

// Runs until so many characters have been received or the limit is reached; those that are queued are sent meanwhile.
void serial_run(Serial* s, uint64_t max_cycles, size_t characters) {
    const uint64_t end = s->cycles + max_cycles;
    while (s->cycles < end && s->received.size() < characters) s->tick();
}

// Runs until everything queued has left.
void serial_drain(Serial* s) {
    while (!s->to_send.empty()) s->tick();
}

size_t serial_received(Serial* s) { return s->received.size(); }

void serial_read(Serial* s, uint8_t* data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        data[i] = s->received.front();
        s->received.pop_front();
    }
}

void serial_forget(Serial* s) { s->received.clear(); }
}

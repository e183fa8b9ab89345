"""Runs a compiled program on any device: identity check, setup, images, fault report."""

import numpy as np
from sigbit_hw.spec.config import CONTRACT_VERSION
from sigbit_hw.spec.packets import Fault
from sigbit_hw.spec.registers import COUNTERS, IDENTITY, Control, Interrupt, Register
from sigbit_sim.golden.program import ProgramError

from .device import DeviceError

__all__ = ["Session"]


class Session:
    """An open program on a device. Use it as a context manager.

    A device that fails is reset and set up again, and goes on with the first image whose result is missing. Results
    that arrived stay as they are; each has been checked.

    Parameters
    ----------
    device : Device
    program : Program
    retries : int, optional
        How often without a result in between, by default what the device says; 0 makes every failure an error.

    Attributes
    ----------
    recoveries : list of str
        What went wrong, each time. The performance counters start again from 0 there.

    Raises
    ------
    :exc:`DeviceError`
        If the device is not an accelerator, or not the one that the program was compiled for.
    """

    def __init__(self, device, program, retries=None):
        self._device, self._program = device, program
        self._retries = device.retries if retries is None else retries
        self._failed = 0
        self.recoveries = []
        identity, version = device.read(Register.IDENTITY), device.read(Register.VERSION)
        if identity != IDENTITY:
            raise DeviceError(f"Expected a sigbit accelerator (identity {IDENTITY:#010x}), found {identity:#010x}")
        if version != CONTRACT_VERSION:
            raise DeviceError(
                f"The accelerator speaks contract version {version}, this host {CONTRACT_VERSION}; "
                "generate the accelerator again or install the matching sigbit"
            )
        found = device.read(Register.HASH_LOW) | device.read(Register.HASH_HIGH) << 32
        if found != program.config.hash:
            raise DeviceError(
                f"The program was compiled for configuration {program.config.hash:016x}, the accelerator is "
                f"{found:016x}; compile the network again for this accelerator's configuration"
            )

    def __enter__(self):
        self._sent = self._received = 0
        while True:
            try:
                if self._failed:
                    self._device.discard()
                self._open()
                self._failed = 0
                return self
            except DeviceError as error:
                self._count(error)

    def __exit__(self, *exception):
        if exception[0] is None:
            try:
                self._device.send(self._program.end_packet())
                self._device.flush()
                self._check_fault()
                return
            except DeviceError as error:
                # Every result is here already.
                self._count(error)
        self._device.discard()
        self._device.write(Register.CONTROL, Control.SOFT_RESET)

    def run(self, levels, progress=None):
        """Outputs of images.

        The packets of the next image are on their way while one is computed. A program that takes groups of images gets
        them; the last group is filled up with its last image, and what comes of that is dropped.

        Parameters
        ----------
        levels : int array, ``(N, channels, height, width)``
            Input levels.
        progress : callable, optional
            Called with the number of images done.

        Returns
        -------
        int64 array, ``(N, channels)`` or ``(N, channels, height, width)``
            Logits or levels of the output tensor; a dictionary of arrays by name if there are several outputs.
        """
        outputs = []
        batch = self._program.batch
        groups = [levels[start : start + batch] for start in range(0, len(levels), batch)]
        done = ahead = 0
        while done < len(groups):
            try:
                if self._failed:
                    self._device.discard()
                    self._open()
                    ahead, self._sent = done, self._received
                while ahead < min(done + 2, len(groups)):
                    self._send(groups[ahead])
                    ahead += 1
                results = self._receive()
            except DeviceError as error:
                self._count(error)
                continue
            self._failed = 0
            outputs.extend(results[: len(groups[done])])
            done += 1
            if progress:
                progress(len(outputs))
        if len(self._program.outputs) > 1:
            return {output.name: _stack([found[output.name] for found in outputs]) for output in self._program.outputs}
        return _stack(outputs)

    def counters(self):
        """Performance counters since the session was opened, by register name."""
        return {register.name.lower(): self._device.read(register) for register in COUNTERS}

    def _open(self):
        self._device.write(Register.CONTROL, Control.SOFT_RESET)
        self._device.write(Register.IRQ_PENDING, Interrupt.END | Interrupt.FAULT)
        self._device.write(Register.IRQ_ENABLE, Interrupt.FAULT)
        for packet in self._program.setup:
            self._device.send(packet)
        self._device.flush()
        self._check_fault()
        self._device.write(Register.CONTROL, Control.CLEAR_COUNTERS)

    def _count(self, error):
        """Note a failure, or raise it if there were enough."""
        if self._failed >= self._retries:
            raise error
        self._failed += 1
        self.recoveries.append(str(error))

    def _send(self, group):
        for packet in self._program.image_packets(group, self._sent):
            self._device.send(packet)
        self._sent += 1

    def _receive(self):
        """Results of a group."""
        try:
            packets = [self._device.receive() for _ in self._program.arrival]
        except DeviceError:
            self._check_fault()
            raise
        try:
            results = self._program.decode_outputs(packets, self._received)
        except ProgramError as error:
            raise DeviceError(str(error)) from error
        self._received += 1
        return results

    def _check_fault(self):
        code = self._device.read(Register.FAULT)
        if code:
            fault = {known.value: known.name for known in Fault}.get(code, "unknown")
            packet = self._device.read(Register.FAULT_PACKET)
            raise DeviceError(f"The accelerator stopped with fault {code} ({fault}) at packet {packet}")


def _stack(results):
    return np.stack(results) if results else np.empty((0,), np.int64)

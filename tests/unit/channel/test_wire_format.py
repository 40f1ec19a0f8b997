#!/usr/bin/python3
"""A second implementation of the channel, written from docs/wire-format.md alone, against the real one: it joins over
tcp with a shared key as receiver and as sender, resumes, reads a log file, and tries to get in where it must not.

usage: test_wire_format.py CHANNEL_PROBE
"""
import hashlib
import hmac
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

PROBE = os.path.abspath(sys.argv[1])
LIMIT_S = 60
VERSION = 2
ASK, ANSWER, PROOF, GRANT = 1, 2, 3, 4
BYTES = {ASK: 136, ANSWER: 136, PROOF: 64, GRANT: 96}
RING_BYTES = 1 << 20
FEATURE_KEY, FEATURE_RESUME = 1, 2
REFUSED = {"version": 2, "features": 3, "generation": 6, "key": 8, "session": 10, "busy": 100}

# ---- CRC-32C, RFC 3720 ----

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(*parts):
    crc = 0xFFFFFFFF
    for part in parts:
        for byte in part:
            crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# ---- the frame ----


def frame_make(key, lsn, position, kind, payload):
    whole = (32 + len(payload) + 8 + 63) // 64 * 64
    head = struct.pack("<2sBBHHQQI", b"FR", VERSION, 0, kind, 0, lsn, position, len(payload))
    rest = payload + bytes(whole - 40 - len(payload)) + struct.pack("<Q", key ^ lsn)
    return head + struct.pack("<I", crc32c(struct.pack("<Q", key), head, rest)) + rest


def pad_make(key, lsn, bytes_to_end):
    head = struct.pack("<2sBBHHQQI", b"FR", VERSION, 1, 0, 0, lsn, 0, bytes_to_end)
    rest = bytes(24) + struct.pack("<Q", key ^ lsn)
    return head + struct.pack("<I", crc32c(struct.pack("<Q", key), head, rest)) + rest


class Frames:
    """Takes the bytes of a ring in the order of their indices; records come out of `records`."""

    def __init__(self, key):
        self.key, self.index, self.lsn, self.buffer, self.records, self.pads = key, 0, 0, b"", [], 0

    def take(self, data):
        self.buffer += data
        while len(self.buffer) >= 64:
            magic, version, flag, kind, zero, lsn, position, length, crc = struct.unpack_from("<2sBBHHQQII", self.buffer)
            whole = 64 if flag == 1 else (32 + length + 8 + 63) // 64 * 64
            step = length if flag == 1 else whole
            if len(self.buffer) < step:
                return
            frame = self.buffer[:whole]
            assert (magic, version, zero, lsn) == (b"FR", VERSION, 0, self.lsn + 1), frame[:32]
            assert struct.unpack("<Q", frame[-8:])[0] == self.key ^ lsn
            assert crc32c(struct.pack("<Q", self.key), frame[:28], frame[32:]) == crc
            if flag == 1:
                assert (self.index + length) % RING_BYTES == 0
                self.pads += 1
            else:
                assert flag == 0 and not any(frame[32 + length:-8])
                self.records.append((kind, position, frame[32:32 + length]))
                self.lsn = lsn
            self.index += step
            self.buffer = self.buffer[step:]


# ---- joining ----


def read_exactly(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the other end has closed")
        data += part
    return data


class Talk:
    """One conversation of four messages: what was said, and the proofs over it."""

    def __init__(self, connection, key):
        self.connection, self.key, self.said = connection, key, b""

    def prove(self, message):
        return hmac.new(self.key, self.said + message[:-32] + bytes(32), hashlib.sha256).digest()

    def say(self, kind, body, proven=True):
        message = struct.pack("<4sBBH", b"FTTV", VERSION, kind, BYTES[kind]) + body
        if proven:
            message = message[:-32] + self.prove(message)
        self.said += message
        self.connection.sendall(message)

    def hear(self, kind):
        message = read_exactly(self.connection, BYTES[kind])
        assert struct.unpack_from("<4sBBH", message) == (b"FTTV", VERSION, kind, BYTES[kind]), message[:8]
        self.proven = message[-32:] == self.prove(message)
        self.said += message
        return message


def hello(generation=1, features=FEATURE_KEY | FEATURE_RESUME, ack=0, refusal=0):
    return struct.pack("<IBBH32s32sQ16s32x", features, RING_BYTES.bit_length() - 1, ack, refusal, os.urandom(32), b"probe",
                       generation, bytes(16))


def join_as_receiver(connection, key, frame_key, session=0, index=0, lsn=0):
    talk = Talk(connection, key)
    talk.hear(ASK)
    talk.say(ANSWER, hello())
    proof = talk.hear(PROOF)
    assert talk.proven and struct.unpack_from("<I", proof, 8) == (0,)
    assert struct.unpack_from("<Q", proof, 24) == (session,)
    talk.say(GRANT, struct.pack("<IIQQQQQII32x", 0, 0, 0, 0, frame_key, index, lsn, 0, 0))


def join_as_sender(connection, key, session=0, **own):
    """The key of the frames; or, a number of REFUSED."""
    talk = Talk(connection, key)
    talk.say(ASK, hello(**own), proven=False)
    answer = talk.hear(ANSWER)
    refusal = struct.unpack_from("<H", answer, 14)[0]
    if refusal:
        return None, refusal, talk
    talk.say(PROOF, struct.pack("<IIQQ32x", 0, 0, 0, session))
    grant = talk.hear(GRANT)
    refusal = struct.unpack_from("<I", grant, 8)[0]
    if refusal:
        assert not any(grant[12:]), "a refusal tells nothing"
        return None, refusal, talk
    assert talk.proven
    return struct.unpack_from("<Q", grant, 32)[0], 0, talk


# ---- the stream ----


def control_make(key, counter, lsn, index, seen_lsn):
    block = struct.pack("<QQQQ28x", counter, lsn, index, seen_lsn)
    return struct.pack("<II", 0, 64) + block + struct.pack("<I", crc32c(struct.pack("<Q", key), block))


def control_read(key, block):
    assert crc32c(struct.pack("<Q", key), block[:60]) == struct.unpack_from("<I", block, 60)[0]
    return struct.unpack_from("<QQQQ", block)


class Receiving:
    """A receiver's end of one connection: takes chunks, answers each with what it has."""

    def __init__(self, connection, frames):
        self.connection, self.frames, self.counter, self.their_counter = connection, frames, 0, 0

    def answer(self):
        self.counter += 1
        self.connection.sendall(control_make(self.frames.key, self.counter, self.frames.lsn, self.frames.index,
                                             self.frames.lsn))

    def step(self, at_most=None):
        kind, count = struct.unpack("<II", read_exactly(self.connection, 8))
        if kind == 0:
            assert count == 64
            self.their_counter += 1
            counter, acked, index, _ = control_read(self.frames.key, read_exactly(self.connection, 64))
            assert counter == self.their_counter and acked <= self.frames.lsn and index <= self.frames.index
        else:
            assert kind == 1
            self.frames.take(read_exactly(self.connection, count if at_most is None else min(count, at_most)))
        self.answer()


def content(lsn, count):
    return bytes((lsn * 131 + i * 7) & 0xFF for i in range(count))


class Probe:
    """The real end."""

    def __init__(self, key_path, *arguments):
        self.process = subprocess.Popen([PROBE, "-k", key_path, "-r", "1", "-j", "30000", *map(str, arguments)],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def end(self):
        """Exit status, and what it said."""
        try:
            said = self.process.communicate(timeout=LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = self.process.communicate()[0] + b"\nkilled: it did not end by itself"
        return self.process.returncode, said

    def stop(self):
        """It ends by itself, so all that it had to say is said."""
        self.process.terminate()
        return self.end()[1]


def listen():
    """At a port that the kernel gives to nobody who merely connects somewhere, so that a receiver can have it next."""
    for _ in range(100):
        try:
            return socket.create_server(("127.0.0.1", random.randrange(10000, 20000)))
        except OSError:
            continue
    raise OSError("no free port below 20000")


class WireFormat(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.key = os.urandom(48)
        self.key_path = os.path.join(self.directory.name, "key")
        with open(os.open(self.key_path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(self.key)
        self.listener = listen()
        self.listener.settimeout(LIMIT_S)
        self.address = "tcp:127.0.0.1:%d" % self.listener.getsockname()[1]

    def tearDown(self):
        self.listener.close()
        self.directory.cleanup()

    def accept(self):
        connection = self.listener.accept()[0]
        connection.settimeout(LIMIT_S)
        return connection

    def receiver(self, *arguments):
        """A real receiver at the address, which must be nobody's before it begins."""
        self.listener.close()
        return Probe(self.key_path, *arguments, "receive", self.address)

    def connect(self, probe):
        """To a real receiver, which may take a moment to listen."""
        host, port = self.address[4:].split(":")
        while True:
            try:
                return socket.create_connection((host, int(port)), timeout=LIMIT_S)
            except ConnectionRefusedError:
                if probe.process.poll() is not None:
                    self.fail("the receiver has ended: %s" % (probe.end(),))

    def keeps_the_secret(self, said):
        for begin in range(len(self.key) - 7):
            part = self.key[begin:begin + 8]
            self.assertNotIn(part, said)
            self.assertNotIn(part.hex().encode(), said.lower())

    def test_real_sender_is_received_and_resumed_after_a_cut_amidst_a_frame(self):
        records, count = 2500, 1000
        probe = Probe(self.key_path, "-n", records, "-s", count, "-w", 700, "-t", 30000, "-c", "send", self.address)
        frames = Frames(int.from_bytes(os.urandom(8), "little"))
        cuts = 0
        with self.accept() as connection:
            join_as_receiver(connection, self.key, frames.key)
            receiving = Receiving(connection, frames)
            while frames.lsn < records:
                if cuts < 2 and frames.lsn > 900 * (cuts + 1):
                    receiving.step(at_most=1234)  # of a chunk; not where a frame ends
                    connection.close()
                    frames.buffer = b""
                    connection = self.accept()
                    join_as_receiver(connection, self.key, frames.key, frames.key, frames.index, frames.lsn)
                    receiving = Receiving(connection, frames)
                    receiving.answer()
                    cuts += 1
                receiving.step()
            status, said = probe.end()
            connection.close()
        self.assertEqual(status, 0, said)
        self.assertIn(b"committed %d acked %d consumed %d" % (records, records, records), said)
        self.assertEqual(frames.records, [(1, lsn, content(lsn, count)) for lsn in range(1, records + 1)])
        self.assertGreaterEqual(frames.pads, 2)
        self.assertEqual(cuts, 2)

    def test_real_receiver_takes_what_is_sent_and_answers(self):
        records, count = 1300, 1000
        probe = self.receiver("-n", records, "-s", count, "-t", 30000)
        with self.connect(probe) as connection:
            key, refusal, _ = join_as_sender(connection, self.key)
            self.assertEqual(refusal, 0)
            index = lsn = counter = credit = seen = their_counter = 0
            chunks = b""
            while lsn < records:
                frame = frame_make(key, lsn + 1, lsn + 1, 1, content(lsn + 1, count))
                to_end = RING_BYTES - index % RING_BYTES
                if to_end < len(frame):
                    frame = pad_make(key, lsn + 1, to_end) + os.urandom(to_end - 64) + frame
                while index + len(frame) > credit + RING_BYTES or lsn > seen + 400:
                    kind, length = struct.unpack("<II", read_exactly(connection, 8))
                    self.assertEqual((kind, length), (0, 64))
                    their_counter += 1
                    counter_said, _, credit, seen = control_read(key, read_exactly(connection, 64))
                    self.assertEqual(counter_said, their_counter)
                    self.assertTrue(seen <= lsn and credit <= index)
                index += len(frame)
                lsn += 1
                half = len(frame) // 3  # frames may be split between chunks
                connection.sendall(struct.pack("<II", 1, half) + frame[:half] +
                                   struct.pack("<II", 1, len(frame) - half) + frame[half:])
                if lsn % 100 == 0:
                    counter += 1
                    connection.sendall(control_make(key, counter, seen, index, 0))
            status, said = probe.end()
        self.assertEqual(status, 0, said)
        self.assertIn(b"end done delivered %d" % records, said)

    def test_who_must_not_join_is_refused_and_nothing_said_has_the_secret(self):
        probe = self.receiver("-n", 1)
        with self.connect(probe) as connection:
            self.assertEqual(join_as_sender(connection, os.urandom(48))[1], REFUSED["key"])
        with self.connect(probe) as connection:
            self.assertEqual(join_as_sender(connection, self.key, features=FEATURE_RESUME)[1], REFUSED["features"])
        for generation in (0, 2, 1 << 63):
            with self.connect(probe) as connection:
                self.assertEqual(join_as_sender(connection, self.key, generation=generation)[1], REFUSED["generation"])
        with self.connect(probe) as connection:  # of a session that it does not have
            self.assertEqual(join_as_sender(connection, self.key, session=77)[1], REFUSED["session"])
        # Whoever has heard a good conversation, and says its sender's half again.
        with self.connect(probe) as connection:
            _, refusal, talk = join_as_sender(connection, self.key)
            self.assertEqual(refusal, 0)
        heard_ask, heard_proof = talk.said[:136], talk.said[272:336]
        said = probe.stop()
        self.assertIn(b"does not hold the same key", said)
        self.assertIn(b"generation", said)
        self.assertIn(b"has a shared key", said)
        self.keeps_the_secret(said)
        probe = self.receiver("-n", 1)
        with self.connect(probe) as connection:
            connection.sendall(heard_ask)
            read_exactly(connection, 136)
            connection.sendall(heard_proof)
            grant = read_exactly(connection, 96)
            self.assertEqual(struct.unpack_from("<I", grant, 8)[0], REFUSED["key"])
            self.assertFalse(any(grant[12:]))
        said = probe.stop()
        self.assertIn(b"does not hold the same key", said)
        self.keeps_the_secret(said)

    def test_log_file_is_read(self):
        path = os.path.join(self.directory.name, "log")
        records, count = 5000, 1000  # more than the writer's ring of 4 MiB
        status, said = Probe(self.key_path, "-n", records, "-s", count, "-w", 100, "send", "file:" + path).end()
        self.assertEqual(status, 0, said)
        with open(path, "rb") as file:
            head, log = file.read(128), file.read()
        magic, version, _, key, name, generation = struct.unpack_from("<8sIIQ32sQ", head)
        self.assertEqual((magic, version, name.rstrip(b"\0"), generation), (b"FTVMMLOG", VERSION, b"probe", 1))
        self.assertEqual(crc32c(struct.pack("<Q", key), head[:124]), struct.unpack_from("<I", head, 124)[0])
        frames = Frames(key)
        for begin in range(0, len(log), 1 << 16):
            frames.take(log[begin:begin + (1 << 16)])
        self.assertEqual(len(frames.records), records)
        self.assertEqual(frames.records[-1], (1, records, content(records, count)))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)

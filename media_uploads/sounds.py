"""What are these bytes? Sounds: their packets are walked and counted; what a header claims is not believed."""

import itertools
import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from media_uploads.inspection import HEIF_BRANDS, SOUNDS_ALLOWED, Inspected, NotAcceptable, broken_sound, no_sound

MAX_PIECE = 2**16
MAX_STEPS = 400_000  # reads and table rows: 300 s have at most 120 000 packets; costs about a second
GRACE = 0.4  # seconds: a recorder stopped at the limit has filled its last packets
UNTIMED = float("-inf")

type Packets = Iterator[tuple[float, float]]  # (not before this second or UNTIMED, seconds of sound)


def inspect_audio(file: BinaryIO, *, max_seconds: int) -> Inspected:
    """The same file, measured to within a packet. NotAcceptable if it is no sound that we take or longer than allowed.

    Reads small pieces only, never the whole file, and stops where the sound has become too long.
    """
    source = Source(file)
    sound_format = format_of_sound(source)
    try:
        seconds = played(sound_format.packets(source), max_seconds)
    except (struct.error, LookupError, ValueError, OverflowError) as exc:
        raise broken_sound() from exc
    if seconds <= 0:
        raise NotAcceptable(f"There is no sound in this file. {SOUNDS_ALLOWED}")
    file.seek(0)
    extension, mime_type = sound_format.extension, sound_format.mime_type
    return Inspected("audio", extension, mime_type, None, None, seconds, file, source.size)


def played(packets: Packets, max_seconds: int) -> float:
    """How long a player plays: each packet starts at its time or when the one before has ended, whichever is later."""
    position = 0.0
    for start, seconds in packets:
        position = max(position, start) + seconds
        if position > max_seconds + GRACE:
            raise NotAcceptable(f"The sound is longer than {max_seconds} seconds. Please send a shorter one.")
    return position


class Source:
    """A file that may be hostile, read in small pieces at any place, and only so many."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        self.steps_left = MAX_STEPS

    def step(self, count: int = 1) -> None:
        self.steps_left -= count
        if self.steps_left < 0:
            raise broken_sound()

    def read(self, place: int, length: int) -> bytes:
        """Fewer bytes where the file ends."""
        self.step()
        if length > MAX_PIECE or place < 0:
            raise broken_sound()
        if place >= self.size:
            return b""
        self.file.seek(place)
        return self.file.read(length)

    def exactly(self, place: int, length: int) -> bytes:
        piece = self.read(place, length)
        if len(piece) != length:
            raise broken_sound()
        return piece

    def unpack(self, layout: str, place: int) -> tuple[int, ...]:
        return struct.unpack(layout, self.exactly(place, struct.calcsize(layout)))


class SoundFormat(NamedTuple):
    extension: str
    mime_type: str
    packets: Callable[[Source], Packets]


def format_of_sound(source: Source) -> SoundFormat:
    head = source.read(0, 12)
    if head.startswith(b"RIFF") and head[8:] == b"WAVE":
        return SoundFormat("wav", "audio/wav", wav_packets)
    if head[4:8] == b"ftyp" and head[8:] not in HEIF_BRANDS:
        return SoundFormat("m4a", "audio/mp4", mp4_packets)
    if head.startswith(b"OggS"):
        return SoundFormat("ogg", "audio/ogg", ogg_packets)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return SoundFormat("webm", "audio/webm", webm_packets)
    if head.startswith(b"ID3") or frames_follow(source, 0):
        return SoundFormat("mp3", "audio/mpeg", mp3_packets)
    raise no_sound()


# WAV


def wav_packets(source: Source) -> Packets:
    """The bytes that are there, not those announced: a recorder that streams leaves 0 or 2³² - 1, a liar what he likes.

    What follows the announced data and isn't a chunk (name of four ASCII characters, fits in the file) is sound too.
    """
    bytes_per_second = sound = 0
    place = 12
    while place + 8 <= source.size:
        name, size = struct.unpack("<4sI", source.exactly(place, 8))
        rest = source.size - place - 8
        if name == b"data":
            sound += size if 0 < size <= rest else rest
            size = size or rest
        elif not re.fullmatch(rb"[ -~]{4}", name) or size > rest:
            sound += rest + 8
            break
        elif name == b"fmt ":
            if bytes_per_second:
                raise broken_sound()
            bytes_per_second = wav_bytes_per_second(source.exactly(place + 8, size))
        place += 8 + size + size % 2
    if not bytes_per_second:
        raise broken_sound()
    yield UNTIMED, sound / bytes_per_second


def wav_bytes_per_second(header: bytes) -> int:
    """Worked out: the header's own figure is a claim. Only sound whose samples have a fixed size can be measured so."""
    tag, channels, rate, block, bits = map(int, struct.unpack_from("<HHI4xHH", header))
    if tag == 0xFFFE:  # "extensible": the tag stands further back
        (tag,) = struct.unpack_from("<H", header, 24)
    if (tag, bits) not in {(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64), (6, 8), (7, 8)}:
        raise no_sound("This WAV file is compressed in a way that we can't open.")
    if not 1 <= channels <= 8 or not 4000 <= rate <= 192_000 or block != channels * bits // 8:
        raise broken_sound()
    return rate * block


# MP3

MAX_JUNK = 2**16 - 16
LAYER_3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")
MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
KBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def mp3_packets(source: Source) -> Packets:
    """Frame by frame, whatever a Xing, Info or VBRI header says; that one is silent itself."""
    place = first = next_frames(source, 0)
    while place < source.size:
        head = source.read(place, 48)
        length, seconds = mpeg_frame(head)
        if not length:
            place = next_frames(source, place)
            continue
        if place != first or not re.search(rb"Xing|Info|VBRI", head):
            yield UNTIMED, seconds
        place += length


def mpeg_frame(head: bytes) -> tuple[int, float]:
    """(bytes, seconds) of the Layer III frame with this header, (0, 0) if it is none."""
    if not LAYER_3.match(head) or head[2] & 0b1100 == 0b1100:
        return 0, 0.0
    version = head[1] >> 3 & 3
    rate = MPEG_RATES[version][head[2] >> 2 & 3]
    samples = 1152 if version == 3 else 576
    kbits = KBITS[version == 3][(head[2] >> 4) - 1]
    return samples * kbits * 125 // rate + (head[2] >> 1 & 1), samples / rate


def frames_follow(source: Source, place: int) -> bool:
    """Three in a row: the pattern of one alone is found in any file."""
    for _ in range(3):
        length, _seconds = mpeg_frame(source.read(place, 4))
        if not length:
            return False
        place += length
    return place <= source.size


def next_frames(source: Source, place: int) -> int:
    """Where frames go on behind tags and up to MAX_JUNK of anything else; the end of the file if they don't."""
    while tag := tag_length(source.read(place, 32)):
        place += tag
    window = source.read(place, MAX_JUNK)
    for candidate in LAYER_3.finditer(window):
        if frames_follow(source, place + candidate.start()):
            return place + candidate.start()
    if place + len(window) < source.size:
        raise broken_sound()
    return source.size


def tag_length(head: bytes) -> int:
    """Of an ID3v2, ID3v1 or APE tag: with its picture it may be larger than the sound."""
    if head.startswith(b"ID3") and len(head) >= 10:
        size = 0
        for seven_bits in head[6:10]:
            size = size << 7 | seven_bits & 0x7F
        return size + (20 if head[5] & 0x10 else 10)
    if head.startswith(b"APETAGEX") and len(head) == 32:
        return 32 + int.from_bytes(head[12:16], "little")
    return 128 if head.startswith(b"TAG") else 0


# How long is one packet? Read from the packet as its decoder does.


class Codec(Protocol):
    def seconds(self, packet: bytes) -> float:
        """Of the packet that starts with these bytes; 0 for one that only describes the stream."""


class Opus:
    """https://www.rfc-editor.org/rfc/rfc6716#section-3.1"""

    MILLISECONDS = (*(10, 20, 40, 60) * 3, *(10, 20) * 2, *(2.5, 5, 10, 20) * 4)

    def __init__(self, *, descriptions: int = 0) -> None:
        self.descriptions = descriptions

    def seconds(self, packet: bytes) -> float:
        if self.descriptions or not packet:
            self.descriptions = max(0, self.descriptions - 1)
            return 0.0
        frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[packet[0] & 3]
        return frames * self.MILLISECONDS[packet[0] >> 3] / 1000


class Vorbis:
    """A packet plays half of its block and half of the one before. https://xiph.org/vorbis/doc/Vorbis_I_spec.html"""

    def __init__(self, identification: bytes) -> None:
        (self.rate,) = struct.unpack_from("<I", identification, 12)
        short, long = identification[28] & 15, identification[28] >> 4
        self.sizes = 1 << short, 1 << long
        self.modes: list[int] = []
        self.before = 0
        if not 4000 <= self.rate <= 192_000 or not 6 <= short <= long <= 13:
            raise broken_sound()

    def seconds(self, packet: bytes) -> float:
        if packet.startswith(b"\x05vorbis") and not self.modes:
            self.modes = self.block_sizes(packet)
        if not packet or packet[0] & 1:
            return 0.0
        size = self.modes[packet[0] >> 1 & (1 << (len(self.modes) - 1).bit_length()) - 1]
        before, self.before = self.before, size
        return (before + size) / 4 / self.rate if before else 0.0

    def block_sizes(self, setup: bytes) -> list[int]:
        """Of each mode. They come last in the header, their number and 41 bits each, so they are read from the end."""
        bits = int.from_bytes(setup[-512:], "little")
        end = bits.bit_length() - 1  # the last bit set closes the header
        found: list[int] = []
        modes: list[int] = []
        for count in range(1, 65):
            mode = bits >> max(0, end - 41 * count) & (1 << 41) - 1
            if mode >> 1 & 0xFFFFFFFF or mode >> 33 > 63 or end < 41 * count + 6:
                break
            modes.insert(0, self.sizes[mode & 1])
            if bits >> end - 41 * count - 6 & 63 == count - 1:
                found = modes.copy()
        if not found:
            raise broken_sound()
        return found


class Flac:
    """https://www.rfc-editor.org/rfc/rfc9639#section-9.1"""

    def __init__(self, identification: bytes) -> None:
        self.rate = int.from_bytes(identification[27:30]) >> 4
        if not 4000 <= self.rate <= 192_000:
            raise broken_sound()

    def seconds(self, packet: bytes) -> float:
        return self.samples(packet) / self.rate if packet.startswith(b"\xff") else 0.0

    def samples(self, packet: bytes) -> int:
        code = packet[2] >> 4
        if code in (6, 7):  # written out behind the frame's number, which has as many bytes as its first leading ones
            behind = 4 + max(1, 8 - (packet[4] ^ 0xFF).bit_length())
            return int.from_bytes(packet[behind : behind + code - 5]) + 1
        return 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8


class Constant:
    """Every packet lasts as long: Speex, AAC and ALAC decoders take that from the header too."""

    def __init__(self, samples: int, rate: int, *, descriptions: int = 0) -> None:
        if not 0 < samples <= 2**16 or not 4000 <= rate <= 192_000:
            raise broken_sound()
        self.packet_seconds = samples / rate
        self.descriptions = descriptions

    def seconds(self, packet: bytes) -> float:
        if self.descriptions:
            self.descriptions -= 1
            return 0.0
        return self.packet_seconds


# OGG. https://www.rfc-editor.org/rfc/rfc3533


def ogg_packets(source: Source) -> Packets:
    streams: dict[int, OggStream] = {}
    place = 0
    while len(head := source.read(place, 27)) == 27:
        magic, version, flags, _granule, serial, _, _, count = struct.unpack("<4sBBqIIIB", head)
        if magic != b"OggS" or version:
            raise broken_sound()
        lacing = source.read(place + 27, count)
        source.step(count)
        page = source.read(place + 27 + count, sum(lacing))
        place += 27 + count + sum(lacing)
        if flags & 2:
            streams[serial] = OggStream(page)
            if len(streams) > 16:
                raise broken_sound()
        elif stream := streams.get(serial):
            for packet in stream.packets(page, lacing, continued=bool(flags & 1)):
                yield UNTIMED, stream.codec.seconds(packet)


class OggStream:
    def __init__(self, identification: bytes) -> None:
        self.codec = ogg_codec(identification)
        self.started = bytearray()  # of a packet: what is of interest of it

    def packets(self, page: bytes, lacing: bytes, *, continued: bool) -> Iterator[bytes]:
        """The beginnings of the packets that end on this page. Of Vorbis' setup header the end is of interest too."""
        if not continued:
            self.started.clear()
        place = 0
        for length in lacing:
            self.started += page[place : place + length]
            place += length
            if not self.started.startswith(b"\x05vorbis"):
                del self.started[64:]
            if len(self.started) > MAX_PIECE:
                raise broken_sound()
            if length < 255:
                yield bytes(self.started)
                self.started.clear()


def ogg_codec(identification: bytes) -> Codec:
    if identification.startswith(b"OpusHead"):
        return Opus(descriptions=1)
    if identification.startswith(b"\x01vorbis"):
        return Vorbis(identification)
    if identification.startswith(b"\x7fFLAC"):
        return Flac(identification)
    if identification.startswith(b"Speex   "):
        rate, samples, _vbr, frames, more = struct.unpack_from("<I16xIIII", identification, 36)
        return Constant(samples * frames, rate, descriptions=1 + more)
    raise no_sound("This OGG file holds something else than sound, or sound of an unknown kind.")


# MP4. ISO/IEC 14496-12; for AAC's header 14496-1 and -3


class Box(NamedTuple):
    kind: bytes
    begin: int
    start: int  # of its content
    end: int


NOT_AAC = "The sound in this M4A file is of a kind that we can't open; it should be AAC."
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


class Track(NamedTuple):
    identity: int
    timescale: int
    codec: Codec
    box: Box
    table: Box
    sample_ticks: int  # in fragments that don't say
    sample_size: int


def mp4_packets(source: Source) -> Packets:
    """The samples of the one sound track, in its tables or in fragments; each must be there in the file.

    No length in a header is believed, but one longer than the packets counts: gaps are played too.
    """
    track = None
    for box in boxes(source, 0, source.size):
        if box.kind == b"moov":
            if track:
                raise broken_sound()
            track = sound_track(source, box)
            yield from table_packets(source, track)
            yield edited_seconds(source, box, track), 0.0
        elif box.kind == b"moof" and track:
            yield from fragment_packets(source, box, track)
    if not track:
        raise no_sound("There is no sound in this file.")


def boxes(source: Source, place: int, end: int) -> Iterator[Box]:
    while place + 8 <= end:
        size, header = source.unpack(">I", place)[0], 8
        kind = source.exactly(place + 4, 4)
        if size == 1:
            size, header = source.unpack(">Q", place + 8)[0], 16
        elif size == 0:
            size = end - place
        if not header <= size <= end - place:
            raise broken_sound()
        yield Box(kind, place, place + header, place + size)
        place += size


def inside(source: Source, box: Box, *path: bytes) -> Iterator[Box]:
    """All boxes at this path below; never deeper than the path is long."""
    if not path:
        yield box
        return
    for child in boxes(source, box.start, box.end):
        if child.kind == path[0]:
            yield from inside(source, child, *path[1:])


def one(source: Source, box: Box, *path: bytes) -> Box:
    found = next(inside(source, box, *path), None)
    if not found:
        raise broken_sound()
    return found


def rows(source: Source, box: Box, header: int, layout: str, *, count_at: int = 0) -> Iterator[tuple[int, ...]]:
    """A table whose length stands in its header, mostly in the last four bytes; read piece by piece."""
    width = struct.calcsize(layout)
    count = source.unpack(">I", box.start + (count_at or header - 4))[0]
    end = box.start + header + count * width
    if end > box.end:
        raise broken_sound()
    for place in range(box.start + header, end, 1024 * width):
        piece = source.exactly(place, min(1024 * width, end - place))
        source.step(len(piece) // width)
        yield from struct.iter_unpack(layout, piece)


def sound_track(source: Source, moov: Box) -> Track:
    tracks = []
    for trak in inside(source, moov, b"trak"):
        handler = source.exactly(one(source, trak, b"mdia", b"hdlr").start + 8, 4)
        if handler in (b"vide", b"auxv", b"pict"):
            raise no_sound("This is a video. Please send the sound alone.")
        if handler == b"soun":
            tracks.append(trak)
    if len(tracks) != 1:
        raise no_sound("There is not exactly one sound track in this file.")
    identity = number_by_version(source, one(source, tracks[0], b"tkhd"))
    table = one(source, tracks[0], b"mdia", b"minf", b"stbl")
    timescale = number_by_version(source, one(source, tracks[0], b"mdia", b"mdhd"))
    defaults = [source.unpack(">I4xII", box.start + 4) for box in inside(source, moov, b"mvex", b"trex")]
    ticks, size = {track: (ticks, size) for track, ticks, size in defaults}.get(identity, (0, 0))
    return Track(identity, max(1, timescale), mp4_codec(source, table), tracks[0], table, ticks, size)


def number_by_version(source: Source, box: Box) -> int:
    """The number behind two dates, which are longer in version 1: a header's timescale, a track's identity."""
    (version,) = source.unpack(">B", box.start)
    return source.unpack(">I", box.start + (20 if version == 1 else 12))[0]


def mp4_codec(source: Source, table: Box) -> Codec:
    description = one(source, table, b"stsd")
    entry, *more = boxes(source, description.start + 8, description.end)
    if more:  # the samples could switch between two, of which one lies
        raise no_sound(NOT_AAC)
    version = source.unpack(">H", entry.start + 8)[0]  # QuickTime's are longer, and wrap the header up
    inner = entry._replace(start=entry.start + {1: 44, 2: 64}.get(version, 28))
    if entry.kind == b"mp4a":
        return aac(source, one(source, next(inside(source, inner, b"wave"), inner), b"esds"))
    if entry.kind == b"alac":
        header = one(source, inner, b"alac")
        return Constant(*source.unpack(">I16xI", header.start + 4))
    if entry.kind == b"Opus":
        return Opus()
    raise no_sound(NOT_AAC)


def aac(source: Source, esds: Box) -> Codec:
    """Through three nested descriptors (tag, length) to AudioSpecificConfig."""
    data = source.exactly(esds.start + 4, esds.end - esds.start - 4)
    stream = behind_tag(data, 0, 3)
    decoder = behind_tag(data, stream + 3, 4)
    if data[stream + 2] & 0b11100000 or data[decoder] not in (0x40, 0x66, 0x67, 0x68):
        raise no_sound(NOT_AAC)
    return aac_from_config(data[behind_tag(data, decoder + 13, 5) :])


def behind_tag(data: bytes, place: int, tag: int) -> int:
    if data[place] != tag:
        raise broken_sound()
    place += 1
    while data[place] & 0x80:
        place += 1
    return place + 1


def aac_from_config(config: bytes) -> Codec:
    bits = iter(f"{int.from_bytes(config[:16].ljust(16)):0128b}")

    def take(count: int) -> int:
        return int("".join(itertools.islice(bits, count)), 2)

    def sampling_rate() -> int:
        index = take(4)
        return take(24) if index == 15 else AAC_RATES[index]

    def object_type() -> int:
        kind = take(5)
        return 32 + take(6) if kind == 31 else kind

    kind, rate, _channels = object_type(), sampling_rate(), take(4)
    if kind in (5, 29):  # HE-AAC: twice the rate is put out, and twice the samples
        sampling_rate()
        kind = object_type()
    if kind not in (1, 2, 3, 4, 17, 23, 39):
        raise no_sound(NOT_AAC)
    short = take(1)
    if kind in (23, 39):  # low delay
        return Constant(480 if short else 512, rate)
    return Constant(960 if short else 1024, rate)


def table_packets(source: Source, track: Track) -> Packets:
    for place, size in sample_places(source, track.table):
        yield UNTIMED, sample_seconds(source, track, place, size)
    ticks = sum(count * delta for count, delta in rows(source, one(source, track.table, b"stts"), 8, ">II"))
    yield ticks / track.timescale, 0.0


def sample_seconds(source: Source, track: Track, place: int, size: int) -> float:
    if place + size > source.size:
        raise broken_sound()
    return track.codec.seconds(source.read(place, min(size, 16)))


def sample_places(source: Source, table: Box) -> Iterator[tuple[int, int]]:
    """(place in the file, size). Chunks have a place; how many samples one has is told where it changes."""
    sizes = sample_sizes(source, table)
    changes = rows(source, one(source, table, b"stsc"), 8, ">III")
    change = next(changes, None)
    samples = 0
    for number, place in enumerate(chunk_places(source, table), 1):
        while change and change[0] <= number:
            samples, change = change[1], next(changes, None)
        for size in itertools.islice(sizes, samples):
            yield place, size
            place += size


def sample_sizes(source: Source, table: Box) -> Iterator[int]:
    box = one(source, table, b"stsz")
    size, count = source.unpack(">II", box.start + 4)
    if size:
        return itertools.repeat(size, count)
    return (size for (size,) in rows(source, box, 12, ">I"))


def chunk_places(source: Source, table: Box) -> Iterator[int]:
    wide = next(inside(source, table, b"co64"), None)
    box = wide or one(source, table, b"stco")
    return (place for (place,) in rows(source, box, 8, ">Q" if wide else ">I"))


def edited_seconds(source: Source, moov: Box, track: Track) -> float:
    """What the edit list sums up to: it may play the same stretch again and again."""
    timescale = number_by_version(source, one(source, moov, b"mvhd"))
    ticks = 0
    for box in inside(source, track.box, b"edts", b"elst"):
        long = source.unpack(">B", box.start)[0] == 1
        ticks += sum(duration for duration, *_ in rows(source, box, 8, ">QqI" if long else ">IiI"))
    return ticks / max(1, timescale)


def fragment_packets(source: Source, moof: Box, track: Track) -> Packets:
    for traf in inside(source, moof, b"traf"):
        header = one(source, traf, b"tfhd")
        _, identity = source.unpack(">II", header.start)
        if identity != track.identity:
            continue
        fields = {0x10: track.sample_size, 0x8: track.sample_ticks, 0x1: moof.begin} | fragment_fields(source, header)
        place, ticks = fields[0x1], fragment_start(source, traf)
        for run in inside(source, traf, b"trun"):
            if source.unpack(">I", run.start)[0] & 0x1:
                place = fields[0x1] + source.unpack(">i", run.start + 8)[0]
            for sample in run_samples(source, run):
                size = sample.get(0x200, fields[0x10])
                yield ticks / track.timescale, sample_seconds(source, track, place, size)
                place += size
                ticks += sample.get(0x100, fields[0x8])


def fragment_fields(source: Source, header: Box) -> dict[int, int]:
    """By flag: where its data are counted from (1), a sample's ticks (8) and size (0x10)."""
    (flags,) = source.unpack(">I", header.start)
    place = header.start + 8
    fields = {}
    for flag, layout in ((0x1, ">Q"), (0x2, ">I"), (0x8, ">I"), (0x10, ">I")):
        if flags & flag:
            (fields[flag],) = source.unpack(layout, place)
            place += struct.calcsize(layout)
    return fields


def fragment_start(source: Source, traf: Box) -> int:
    box = next(inside(source, traf, b"tfdt"), None)
    if not box:
        return 0
    return source.unpack(">Q" if source.unpack(">B", box.start)[0] == 1 else ">I", box.start + 4)[0]


def run_samples(source: Source, run: Box) -> Iterator[dict[int, int]]:
    """By flag, where it differs from what the fragment says: ticks (0x100) and size (0x200) of each sample."""
    flags, count = source.unpack(">II", run.start)
    present = [flag for flag in (0x100, 0x200, 0x400, 0x800) if flags & flag]
    if not present:
        return itertools.repeat({}, count)
    header = 8 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
    table = rows(source, run, header, ">" + "I" * len(present), count_at=4)
    return (dict(zip(present, row, strict=True)) for row in table)


# WebM. https://www.rfc-editor.org/rfc/rfc8794 (EBML) and rfc9559 (Matroska)

TRACK_TYPE, CODEC, CODEC_HEADER, ENCODINGS, DOC_TYPE = 0x83, 0x86, 0x63A2, 0x6D80, 0x4282
TIMESTAMP, TIMESTAMP_SCALE, SIMPLE_BLOCK, BLOCK = 0xE7, 0x2AD7B1, 0xA3, 0xA1
NOTED = {TRACK_TYPE, CODEC, CODEC_HEADER, ENCODINGS, DOC_TYPE, TIMESTAMP, TIMESTAMP_SCALE}
ENTERED = {0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0x1F43B675, 0xA0}  # header, segment … block group


def webm_packets(source: Source) -> Packets:
    """Block by block: what browsers record has no duration, and sizes "unknown" for what they hadn't finished."""
    notes: dict[int, bytes] = {}
    codec: Codec | None = None
    for identity, place, size in elements(source):
        if identity == TRACK_TYPE and identity in notes:
            raise no_sound("There is more than one track in this file. Please send the sound alone.")
        if identity in NOTED:
            notes[identity] = source.exactly(place, size)
        elif identity in (SIMPLE_BLOCK, BLOCK):
            codec = codec or webm_codec(notes)
            block = source.read(place, min(size, 32))
            yield block_seconds(block, notes), codec.seconds(block[3 + vint_length(block[0]) :])


def elements(source: Source) -> Iterator[tuple[int, int, int]]:
    """(identity, place, size) of every element in the file's order; those that hold others are entered, not told."""
    place = 0
    while len(head := source.read(place, 12)) > 1:
        name = vint_length(head[0])
        length = vint_length(head[name])
        identity = int.from_bytes(head[:name])
        size = int.from_bytes(head[name : name + length]) & (1 << 7 * length) - 1
        place += name + length
        if identity in ENTERED:
            continue
        if size == (1 << 7 * length) - 1:
            raise broken_sound()
        if place + size > source.size:  # cut while recording: what is there counts
            return
        yield identity, place, size
        place += size


def vint_length(first: int) -> int:
    """Of a variable-length number, by the zeros that its first byte starts with."""
    if not first:
        raise broken_sound()
    return 9 - first.bit_length()


def webm_codec(notes: dict[int, bytes]) -> Codec:
    if notes.get(DOC_TYPE, b"").rstrip(b"\0") != b"webm":
        raise no_sound("This Matroska file is no WebM.")
    if notes.get(TRACK_TYPE) != b"\x02":
        raise no_sound("This is a video. Please send the sound alone.")
    if notes.get(CODEC) == b"A_OPUS" and ENCODINGS not in notes:
        return Opus()
    if notes.get(CODEC) == b"A_VORBIS" and ENCODINGS not in notes:
        header = notes[CODEC_HEADER]
        codec = Vorbis(header[header.index(b"\x01vorbis") :])
        codec.seconds(header[header.rindex(b"\x05vorbis") :])
        return codec
    raise no_sound("The sound in this WebM file is of a kind that we can't open; it should be Opus.")


def block_seconds(block: bytes, notes: dict[int, bytes]) -> float:
    """When the block starts. Several packets in one block, as no browser writes them, can't be measured."""
    relative, flags = map(int, struct.unpack_from(">hB", block, vint_length(block[0])))
    if flags & 0b110:
        raise no_sound("This WebM file is packed in a way that we can't measure.")
    scale = int.from_bytes(notes.get(TIMESTAMP_SCALE, b"\x0f\x42\x40"))
    return (int.from_bytes(notes.get(TIMESTAMP, b"")) + relative) * scale / 1e9

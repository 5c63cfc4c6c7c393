//! Compresses a stream so that a change of it changes little of the file: cut by content (FastCDC), each piece a zstd frame
//! of its own, with a checksum. Plain `zstd -d` reads it, and `zstd -t` checks it.
//!
//! The hazard is the stream that shifts: in a VMA or a tar a byte more near the start moves all that follows, and whatever is
//! compressed as one, or cut at fixed places, is another file from there on. Cut where the content says so, the pieces after
//! the change are the old ones, their frames are the old bytes, and rsync finds them. Hence nothing may reach from one frame
//! into the next, and the same piece must give the same frame whoever compresses it: no dictionary, one level, no threads
//! within a frame. The price is size, about a tenth (`scripts/bench frames`).

use anyhow::{Context, Result, anyhow};
use bak_common::hash::hex;
use fastcdc::v2020::{Normalization, select_masks};
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

/// Bytes of a piece: at least, about, at most. Smaller ones compress worse and cost more headers; of larger ones a change
/// costs more. rsync must find them again: its blocks are smaller than this.
const PIECE: (usize, usize, usize) = (16 << 10, 64 << 10, 256 << 10);

/// What zstd itself does if nobody says.
pub const LEVEL: i32 = 3;

/// How many threads compress: as many as there are processors, up to what the one that writes and hashes keeps up with.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}

/// What empty parts of a stream are compared with.
const ZEROS: [u8; 4096] = [0; 4096];

/// What goes to a thread at once, in bytes: some dozen pieces, so that handing them on costs nothing beside compressing them.
const BATCH: usize = 1 << 20;

/// Batches on their way to and from each compressing thread.
const AHEAD: usize = 2;

/// Some pieces of the stream, one behind the other, and then their frames. Goes round: what was written is filled again.
struct Batch {
    /// Of `BATCH` bytes. What lies behind the last piece belongs to the next batch.
    input: Vec<u8>,
    /// Where each piece ends.
    ends: Vec<usize>,
    /// The frames are its first `used` bytes.
    frames: Vec<u8>,
    used: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the stream.
    pub stream: u64,
    /// Bytes of the file, and its SHA-256 in hexadecimal.
    pub bytes: u64,
    pub sha256: String,
}

/// Has a pipe hold as much as is read of it at once: what writes to it and the threads here then wait less for each other. Some
/// users may not have that much of it, and it only costs time if not.
pub fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, BATCH);
}

/// Compresses `input` to its end into `output`, with so many threads beside two that wait most of the time. `tick` is told how
/// much of the stream was written, several times a second; its error ends the work and is the result. `abort` is called if the
/// work ends before the input does: it must see to it that the input ends, or this waits for it.
pub fn write(
    input: impl Read + Send,
    mut output: impl Write,
    (level, threads): (i32, usize),
    tick: &dyn Fn(u64) -> Result<()>,
    abort: impl FnOnce(),
) -> Result<Written> {
    std::thread::scope(|scope| {
        let mut to: Vec<SyncSender<Batch>> = Vec::new();
        let mut from: Vec<Receiver<Result<Batch>>> = Vec::new();
        for _ in 0..threads.max(1) {
            let (batches, work) = sync_channel(AHEAD);
            let (done, compressed) = sync_channel(AHEAD);
            scope.spawn(move || compress(level, &work, &done));
            to.push(batches);
            from.push(compressed);
        }
        let (again, spare) = channel();
        let reader = scope.spawn(move || read(input, &to, &spare));
        let written = collect(&from, &again, &mut output, tick);
        if written.is_err() {
            // The compressing threads end when nobody listens, and the reader when these are gone.
            drop(from);
            abort();
        }
        let read = reader.join().unwrap_or_else(|_| Err(anyhow!("the reading thread has ended")));
        // What went wrong first on our side is the reason; a reader that was cut off is not.
        let written = written?;
        read?;
        Ok(written)
    })
}

/// Deals the stream out, a batch to each thread in turn.
fn read(mut input: impl Read, to: &[SyncSender<Batch>], spare: &Receiver<Batch>) -> Result<()> {
    let mut batch = Batch::new();
    let mut filled = 0;
    for to in to.iter().cycle() {
        let end = fill(&mut input, &mut batch.input, &mut filled).context("cannot read the stream")?;
        let cut = batch.cut(filled, end);
        let mut next = spare.try_recv().unwrap_or_else(|_| Batch::new());
        filled -= cut;
        next.input[..filled].copy_from_slice(&batch.input[cut..cut + filled]);
        if to.send(std::mem::replace(&mut batch, next)).is_err() || end {
            // Why nobody listens any more is known there.
            break;
        }
    }
    Ok(())
}

/// Reads until `buffer` is full; whether the stream has ended before.
fn fill(input: &mut impl Read, buffer: &mut [u8], filled: &mut usize) -> std::io::Result<bool> {
    while *filled < buffer.len() {
        match input.read(&mut buffer[*filled..]) {
            Ok(0) => return Ok(true),
            Ok(count) => *filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

impl Batch {
    fn new() -> Self {
        Self { input: vec![0; BATCH], ends: Vec::new(), frames: Vec::new(), used: 0 }
    }

    /// Cuts what is certain of the first `filled` bytes: all of them at the `end` of the stream, else only where the longest
    /// piece would fit. Where the last piece ends.
    fn cut(&mut self, filled: usize, end: bool) -> usize {
        self.ends.clear();
        let mut at = 0;
        while filled - at >= PIECE.2 || (end && at < filled) {
            at += piece(&self.input[at..filled]);
            self.ends.push(at);
        }
        at
    }

    /// Replaces the frames by those of these pieces.
    fn compress(&mut self, compressor: &mut Compressor) -> std::io::Result<()> {
        let Self { input, ends, frames, used } = self;
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let most = |(start, end): (usize, &usize)| compress_bound(end - start);
        let room: usize = starts.clone().zip(ends.iter()).map(most).sum();
        frames.resize(room.max(frames.len()), 0);
        *used = 0;
        for (start, &end) in starts.zip(ends.iter()) {
            *used += compressor.compress_to_buffer(&input[start..end], &mut frames[*used..])?;
        }
        Ok(())
    }
}

/// How long the first piece of `bytes` is.
fn piece(bytes: &[u8]) -> usize {
    let (least, about, most) = PIECE;
    // What is empty is never cut before the longest piece, so that need not be looked for byte by byte.
    if bytes.get(..most).is_some_and(|bytes| bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])) {
        return most;
    }
    let (small, large) = select_masks(about, Normalization::Level1);
    fastcdc::v2020::cut(bytes, least, about, most, small, large, small << 1, large << 1).1
}

fn compress(level: i32, work: &Receiver<Batch>, done: &SyncSender<Result<Batch>>) {
    let mut compressor = Compressor::new(level).and_then(|mut new| {
        new.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(new)
    });
    for mut batch in work {
        let compressed = match &mut compressor {
            Ok(compressor) => batch.compress(compressor).context("cannot compress"),
            Err(error) => Err(anyhow!("cannot compress: {error}")),
        };
        if done.send(compressed.map(|()| batch)).is_err() {
            return;
        }
    }
}

/// Writes the frames in the order of their pieces.
fn collect(
    from: &[Receiver<Result<Batch>>],
    again: &Sender<Batch>,
    output: &mut impl Write,
    tick: &dyn Fn(u64) -> Result<()>,
) -> Result<Written> {
    let mut hasher = Sha256::new();
    let (mut stream, mut bytes) = (0, 0);
    for batches in from.iter().cycle() {
        let batch = loop {
            match batches.recv_timeout(Duration::from_millis(200)) {
                Ok(batch) => break batch?,
                Err(RecvTimeoutError::Timeout) => tick(stream)?,
                // The next batch would be this thread's: there is none.
                Err(RecvTimeoutError::Disconnected) => {
                    let sha256 = hex(&hasher.finalize());
                    return Ok(Written { stream, bytes, sha256 });
                }
            }
        };
        let frames = &batch.frames[..batch.used];
        output.write_all(frames).context("cannot write the archive")?;
        hasher.update(frames);
        stream += batch.ends.last().map_or(0, |end| *end as u64);
        bytes += frames.len() as u64;
        // The reader may have ended.
        let _ = again.send(batch);
        tick(stream)?;
    }
    // Not reached: there is at least one thread, so the cycle has no end.
    Err(anyhow!("no thread compresses"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zstd::zstd_safe;

    /// How long the pieces are that the frames of `archive` hold.
    fn pieces(mut archive: &[u8]) -> Vec<usize> {
        let mut sizes = Vec::new();
        while !archive.is_empty() {
            sizes.push(zstd_safe::get_frame_content_size(archive).unwrap().unwrap() as usize);
            archive = &archive[zstd_safe::find_frame_compressed_size(archive).unwrap()..];
        }
        sizes
    }

    /// Comes in small portions, interrupted now and then.
    struct Portions<'a>(&'a [u8], usize);

    impl Read for Portions<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(ErrorKind::Interrupted.into());
            }
            let most = buffer.len().min(self.1 * 7919 % 70_000 + 1);
            self.0.read(&mut buffer[..most])
        }
    }

    /// Bytes with some order in them, the same for the same seed.
    fn content(seed: u64, bytes: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 60) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn packed(input: &[u8], threads: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let written = write(input, &mut out, (LEVEL, threads), &|_| Ok(()), || ()).unwrap();
        assert_eq!((written.stream, written.bytes), (input.len() as u64, out.len() as u64));
        assert_eq!(written.sha256, hex(&Sha256::digest(&out)));
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// zstd reads it back, and the number of threads makes no difference.
        #[test]
        fn round_trip(seed in any::<u64>(), bytes in 0..3_000_000_usize, threads in 1..5_usize) {
            let input = content(seed, bytes);
            let out = packed(&input, threads);
            prop_assert_eq!(&out, &packed(&input, 1));
            prop_assert_eq!(zstd::decode_all(&out[..]).unwrap(), input);
        }

        /// The cuts are those of FastCDC, however the stream comes and wherever a batch of it ends, empty parts or not: another
        /// cut would be another file, and its whole way to the storage once more.
        #[test]
        fn cut_as_fastcdc_does(
            seed in any::<u64>(),
            parts in prop::collection::vec((any::<bool>(), 0..900_000_usize), 0..8),
            threads in 1..4_usize,
        ) {
            let part = |&(empty, bytes): &(bool, usize)| if empty { vec![0; bytes] } else { content(seed, bytes) };
            let input: Vec<u8> = parts.iter().flat_map(part).collect();
            let mut out = Vec::new();
            write(Portions(&input, 0), &mut out, (LEVEL, threads), &|_| Ok(()), || ()).unwrap();
            let expected: Vec<usize> =
                fastcdc::v2020::StreamCDC::new(&input[..], PIECE.0, PIECE.1, PIECE.2).map(|piece| piece.unwrap().length).collect();
            prop_assert_eq!(pieces(&out), expected);
            prop_assert_eq!(out, packed(&input, 1));
        }

        /// Whatever is put in anywhere, all but a few pieces around it stay as they are.
        #[test]
        fn a_change_changes_little(seed in any::<u64>(), at in 0..2_000_000_usize, len in 1..5000_usize, cut in any::<bool>()) {
            let before = content(seed, 2_000_000);
            let mut after = before.clone();
            let end = (at + len).min(after.len());
            after.splice(at..if cut { end } else { at }, if cut { vec![] } else { content(seed ^ 1, len) });
            let (before, after) = (packed(&before, 2), packed(&after, 2));
            let same = |pairs: &mut dyn Iterator<Item = (&u8, &u8)>| pairs.take_while(|(a, b)| a == b).count();
            let start = same(&mut before.iter().zip(&after));
            let end = same(&mut before.iter().rev().zip(after.iter().rev()));
            let changed = after.len().saturating_sub(start + end);
            prop_assert!(changed < 4 * PIECE.2, "{changed} bytes");
        }
    }

    #[test]
    fn an_empty_stream_is_an_empty_archive() {
        assert_eq!(packed(&[], 2), Vec::<u8>::new());
    }

    /// Never ends, and blocks for ever once it is told so.
    struct Endless<'a>(&'a std::sync::atomic::AtomicBool);

    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(std::io::Error::other("aborted"));
            }
            buffer.fill(7);
            Ok(buffer.len())
        }
    }

    #[test]
    fn what_ends_the_work_is_said_and_the_input_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let aborted = std::sync::atomic::AtomicBool::new(false);
        let abort = || aborted.store(true, std::sync::atomic::Ordering::SeqCst);
        let error = write(Endless(&aborted), Full, (LEVEL, 2), &|_| Ok(()), abort).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot write the archive: "), "{error:#}");
        aborted.store(false, std::sync::atomic::Ordering::SeqCst);
        let tick = |done: u64| if done > 1 << 20 { Err(anyhow!("enough")) } else { Ok(()) };
        let error = write(Endless(&aborted), std::io::sink(), (LEVEL, 2), &tick, abort).unwrap_err();
        assert_eq!(format!("{error:#}"), "enough");
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let aborted = std::sync::atomic::AtomicBool::new(true);
        let error = write(Endless(&aborted), std::io::sink(), (LEVEL, 2), &|_| Ok(()), || ()).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot read the stream"), "{error:#}");
    }
}

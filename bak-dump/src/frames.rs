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
use fastcdc::v2020::StreamCDC;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

/// Bytes of a piece: at least, about, at most. Smaller ones compress worse and cost more headers; of larger ones a change
/// costs more. rsync must find them again: its blocks are smaller than this.
const PIECE: (usize, usize, usize) = (16 << 10, 64 << 10, 256 << 10);

/// What zstd itself does if nobody says.
pub const LEVEL: i32 = 3;

/// How many threads compress: as many as there are processors, up to what the one that writes and hashes keeps up with.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}

/// Pieces on their way to and from each compressing thread.
const AHEAD: usize = 16;

/// How long a piece was, and its frame.
type Framed = Result<(usize, Vec<u8>)>;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the stream.
    pub stream: u64,
    /// Bytes of the file, and its SHA-256 in hexadecimal.
    pub bytes: u64,
    pub sha256: String,
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
        let mut to: Vec<SyncSender<Vec<u8>>> = Vec::new();
        let mut from: Vec<Receiver<Framed>> = Vec::new();
        for _ in 0..threads.max(1) {
            let (pieces, work) = sync_channel(AHEAD);
            let (done, frames) = sync_channel(AHEAD);
            scope.spawn(move || compress(level, &work, &done));
            to.push(pieces);
            from.push(frames);
        }
        let reader = scope.spawn(move || read(input, to));
        let written = collect(&from, &mut output, tick);
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

/// Deals the pieces of the stream out, one to each thread in turn.
fn read(input: impl Read, to: Vec<SyncSender<Vec<u8>>>) -> Result<()> {
    let (least, about, most) = PIECE;
    let pieces = StreamCDC::new(input, least, about, most);
    for (piece, to) in pieces.zip(to.iter().cycle()) {
        let piece = piece.map_err(std::io::Error::from).context("cannot read the stream")?;
        if to.send(piece.data).is_err() {
            // Why is known there.
            return Ok(());
        }
    }
    Ok(())
}

fn compress(level: i32, work: &Receiver<Vec<u8>>, done: &SyncSender<Framed>) {
    let mut compressor = Compressor::new(level).and_then(|mut new| {
        new.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(new)
    });
    for piece in work {
        let frame = match &mut compressor {
            Ok(compressor) => compressor.compress(&piece).context("cannot compress"),
            Err(error) => Err(anyhow!("cannot compress: {error}")),
        };
        if done.send(frame.map(|frame| (piece.len(), frame))).is_err() {
            return;
        }
    }
}

/// Writes the frames in the order of their pieces.
fn collect(from: &[Receiver<Framed>], output: &mut impl Write, tick: &dyn Fn(u64) -> Result<()>) -> Result<Written> {
    let mut hasher = Sha256::new();
    let (mut stream, mut bytes) = (0, 0);
    for frames in from.iter().cycle() {
        let (piece, frame) = loop {
            match frames.recv_timeout(Duration::from_millis(200)) {
                Ok(frame) => break frame?,
                Err(RecvTimeoutError::Timeout) => tick(stream)?,
                // The next piece would be this thread's: there is none.
                Err(RecvTimeoutError::Disconnected) => {
                    let sha256 = hex(&hasher.finalize());
                    return Ok(Written { stream, bytes, sha256 });
                }
            }
        };
        output.write_all(&frame).context("cannot write the archive")?;
        hasher.update(&frame);
        stream += piece as u64;
        bytes += frame.len() as u64;
        tick(stream)?;
    }
    // Not reached: there is at least one thread, so the cycle has no end.
    Err(anyhow!("no thread compresses"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

//! Every frame on every cable of the wire, in both directions, without exceptions.
//!
//! One thread empties the rings of packet sockets on all ports. A frame between two nodes is seen
//! twice: where it enters the bridge and where it leaves it. Nothing is filtered here;
//! [`crate::analysis`] judges the frames.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use crate::netns::Netns;
use crate::syscalls::Ring;

/// Limit of captured bytes. A test that captures more has a mistake.
const LIMIT: u64 = 6 << 30;

/// One frame on one cable.
#[derive(Debug)]
pub struct Frame {
    /// Which cable: an index into [`Capture::ports`].
    pub port: usize,
    /// True if the frame goes from the bridge to the machine at the cable's end, false if it comes
    /// from the machine.
    pub to_machine: bool,
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// From the destination MAC address on; a GSO super-packet is one frame.
    pub bytes: Box<[u8]>,
}

/// A position in a capture: frames after it are later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(usize);

impl Moment {
    /// Before the first frame.
    pub const START: Moment = Moment(0);
}

/// A running capture. Clones refer to the same capture.
#[derive(Clone)]
pub struct Capture {
    ports: Arc<Vec<String>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    frames: Mutex<Vec<Arc<Frame>>>,
    bytes: AtomicU64,
    lost: AtomicU64,
    tolerate_loss: AtomicBool,
    failure: Mutex<Option<String>>,
    /// The last requested and the last finished round of [`Capture::sync`].
    asked: AtomicU64,
    done: AtomicU64,
}

impl Capture {
    /// Starts capturing on `ports`: (namespace, interface) pairs.
    ///
    /// # Errors
    /// A socket could not be opened.
    pub fn start(ports: &[(Netns, String)]) -> Result<Capture> {
        let mut rings = Vec::new();
        for (netns, interface) in ports {
            let index = netns.interface(interface)?;
            rings.push(netns.within(|| {
                Ring::open(index).with_context(|| format!("packet socket on {interface} in {}", netns.name()))
            })?);
        }
        let names = ports.iter().map(|(_, interface)| interface.clone()).collect();
        let capture = Capture { ports: Arc::new(names), shared: Arc::new(Shared::default()) };
        if rings.is_empty() {
            // Marks the capture as failed, so that no test draws conclusions from it.
            *locked(&capture.shared.failure) = Some("nothing is captured here".into());
            return Ok(capture);
        }
        let shared = capture.shared.clone();
        thread::Builder::new().name("capture".into()).spawn(move || shared.read(rings)).context("start capture")?;
        Ok(capture)
    }

    /// Names of the cables' ends at the wire.
    pub fn ports(&self) -> &[String] {
        &self.ports
    }

    /// Tolerates frames that the capture itself loses: this test overloads the wire on purpose.
    pub fn tolerate_loss(&self) {
        self.shared.tolerate_loss.store(true, Ordering::Relaxed);
    }

    /// Waits until everything that has crossed the wire is in the capture, and returns that moment.
    ///
    /// # Errors
    /// The capture lost frames or broke, so that it proves nothing.
    pub fn sync(&self) -> Result<Moment> {
        let round = self.shared.asked.fetch_add(1, Ordering::SeqCst) + 1;
        while self.shared.done.load(Ordering::SeqCst) < round {
            self.check()?;
            sleep(Duration::from_millis(1));
        }
        self.check()?;
        Ok(Moment(locked(&self.shared.frames).len()))
    }

    fn check(&self) -> Result<()> {
        if let Some(failure) = locked(&self.shared.failure).as_ref() {
            bail!("the capture broke: {failure}");
        }
        let lost = self.shared.lost.load(Ordering::SeqCst);
        ensure!(
            lost == 0 || self.shared.tolerate_loss.load(Ordering::Relaxed),
            "the capture lost {lost} frames, so it proves nothing: the machine is too slow for this test's traffic"
        );
        Ok(())
    }

    /// Frames since a moment, up to now.
    ///
    /// # Errors
    /// As [`Capture::sync`].
    pub fn since(&self, moment: Moment) -> Result<Vec<Arc<Frame>>> {
        let now = self.sync()?;
        Ok(locked(&self.shared.frames)[moment.0.min(now.0)..now.0].to_vec())
    }

    /// All frames up to now.
    ///
    /// # Errors
    /// As [`Capture::sync`].
    pub fn all(&self) -> Result<Vec<Arc<Frame>>> {
        self.since(Moment::START)
    }

    /// Writes the frames to a pcap file. Most frames are in it twice, because both ends of the wire
    /// see them.
    ///
    /// # Errors
    /// File access fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let header = PcapHeader {
            ts_resolution: TsResolution::NanoSecond,
            datalink: DataLink::ETHERNET,
            snaplen: 1 << 18,
            ..PcapHeader::default()
        };
        let mut writer = PcapWriter::with_header(BufWriter::new(file), header).context("write pcap header")?;
        let frames = locked(&self.shared.frames).clone();
        for frame in frames {
            let time = Duration::from_nanos(frame.time_ns);
            let packet = PcapPacket::new(time, frame.bytes.len() as u32, &frame.bytes);
            writer.write_packet(&packet).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Shared {
    fn read(&self, rings: Vec<Ring>) {
        if let Err(error) = self.read_until_error(rings) {
            *locked(&self.failure) = Some(format!("{error:#}"));
        }
    }

    fn read_until_error(&self, mut rings: Vec<Ring>) -> Result<()> {
        loop {
            let asked = self.asked.load(Ordering::SeqCst);
            let mut crossed = Vec::new();
            let mut lost = 0;
            for ring in &mut rings {
                let (count, lost_here) = ring.count().context("count frames")?;
                crossed.push(count);
                lost += lost_here;
            }
            self.lost.store(lost, Ordering::SeqCst);
            // The kernel hands over a block when it is full or after a timeout, so frames that were
            // counted may not have been handed over yet.
            while rings.iter().zip(&crossed).any(|(ring, crossed)| ring.taken() < *crossed) {
                self.empty(&mut rings)?;
                wait(&rings)?;
            }
            self.done.store(asked, Ordering::SeqCst);
            while self.asked.load(Ordering::SeqCst) == asked {
                self.empty(&mut rings)?;
                wait(&rings)?;
            }
        }
    }

    fn empty(&self, rings: &mut [Ring]) -> Result<()> {
        for (port, ring) in rings.iter_mut().enumerate() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            let mut truncated = false;
            ring.take(|received| {
                truncated |= received.truncated;
                bytes += received.bytes.len() as u64;
                batch.push(Arc::new(Frame {
                    port,
                    to_machine: received.outgoing,
                    time_ns: received.time_ns,
                    bytes: whole(received.bytes, received.vlan),
                }));
            });
            ensure!(!truncated, "a frame was larger than a block of the ring");
            let total = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
            ensure!(total < LIMIT, "more than {LIMIT} bytes captured in one test");
            locked(&self.frames).append(&mut batch);
        }
        Ok(())
    }
}

/// Waits until a ring has frames, or for a short time.
fn wait(rings: &[Ring]) -> Result<()> {
    let mut waiting: Vec<PollFd<'_>> =
        rings.iter().map(|ring| PollFd::new(ring.socket().as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut waiting, PollTimeout::from(2u8)).context("poll packet sockets")?;
    Ok(())
}

/// The frame as it was on the cable. The kernel keeps a VLAN tag apart from the bytes.
fn whole(bytes: &[u8], vlan: Option<u16>) -> Box<[u8]> {
    match vlan {
        Some(tag) if bytes.len() >= 12 => {
            let tag = [0x81, 0x00, (tag >> 8) as u8, tag as u8];
            [&bytes[..12], &tag, &bytes[12..]].concat().into_boxed_slice()
        }
        _ => bytes.into(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

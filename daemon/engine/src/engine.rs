//! The engine: one thread that carries packets between its queues of the device and its sockets.
//!
//! It runs to completion: it encrypts or decrypts and sends each read from the [`Backlog`] before
//! it takes the next. It knows no protocol and decides nothing about a packet beyond its form.
//! Packets that the protocol assigns to another engine are handed over ([`Channels`]).

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::backlog::{Backlog, Read};
use crate::channels::{Channels, Command, Commands, Ends};
use crate::config::DeviceConfig;
use crate::error::Error;
use crate::io::outbox::{Batch, Outbox};
use crate::io::queues::{QUEUES_PER_ENGINE, Queues};
use crate::io::tun::Device;
use crate::io::udp::{Received, Socket, Sockets};
use crate::offload::coalesce::Coalescer;
use crate::offload::ip;
use crate::offload::segment::Segments;
use crate::offload::virtio;
use crate::protocol::{Datagrams, Elsewhere, Inbox, Protocol};
use crate::spin::Spin;
use crate::stats::{Counters, TunnelDrop};

/// Destination of self-test packets: an address in the discard prefix (RFC 6666), which no other
/// packet has. A packet that reaches the tunnel with this destination is counted and dropped.
pub const SELF_TEST_DESTINATION: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0x6861, 0x7562);

/// Packets per turn from each side, so that neither starves the other; a super-packet counts as all
/// its packets.
const PACKETS_PER_TURN: usize = 256;
/// The most reads per turn, however little each brings, and the most commands.
const READS_PER_TURN: usize = 64;
/// A virtio header, and the longest packet that an IPv6 length field can describe.
const READ_BUFFER: usize = virtio::HEADER_LENGTH + ip::V6_HEADER + 65_535;

/// A file descriptor that woke the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// One of the device's queues, by its position in this engine's list.
    Queue(usize),
    SocketV4,
    SocketV6,
    Commands,
}

impl Source {
    fn number(self) -> u64 {
        match self {
            Source::SocketV4 => 0,
            Source::SocketV6 => 1,
            Source::Commands => 2,
            Source::Queue(queue) => 3 + queue as u64,
        }
    }
}

/// Everything that an engine's thread owns.
pub struct Engine<P> {
    queues: Queues,
    sockets: Sockets,
    protocol: P,
    channels: Channels<P>,
    commands: Commands<P>,
    epoll: Epoll,
    counters: Arc<Counters>,
    batch: Batch,
    coalescer: Coalescer,
    spin: Spin,
    outgoing: Backlog<()>,
    incoming: Backlog<Received>,
}

impl<P: Protocol> Engine<P> {
    /// An engine by itself, for the calling thread: with one queue of the device, and no other
    /// engine to share peers with. It opens the device and the sockets in the calling thread's
    /// network namespace, and packets come from here on.
    ///
    /// `port` is the UDP port to listen on; `spin` says for how long after a packet the engine
    /// polls for the next one before it sleeps.
    ///
    /// # Errors
    /// [`Error`]: no TUN device, the port is taken, ...
    pub fn alone(
        device: &DeviceConfig,
        port: u16,
        spin: Duration,
        protocol: P,
        counters: Arc<Counters>,
    ) -> Result<Engine<P>, Error> {
        let device = Device::open(device)?;
        let sockets = Sockets::bind(port, None)?;
        let ends = Channels::new(1)?.remove(0);
        device.attach()?;
        Engine::new(Queues::new(vec![device]), sockets, protocol, ends, counters, spin)
    }

    pub(crate) fn new(
        queues: Queues,
        sockets: Sockets,
        protocol: P,
        (channels, commands): Ends<P>,
        counters: Arc<Counters>,
        spin: Duration,
    ) -> Result<Engine<P>, Error> {
        let failed = |step| move |errno: Errno| Error::Engine { step, source: errno.into() };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("make an epoll instance"))?;
        let watch = |fd: std::os::fd::BorrowedFd<'_>, source: Source| {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.number())).map_err(failed("watch a descriptor"))
        };
        for (number, queue) in queues.each().enumerate() {
            watch(queue.as_fd(), Source::Queue(number))?;
        }
        watch(commands.wake.as_fd(), Source::Commands)?;
        if let Some(socket) = &sockets.v4 {
            watch(socket.as_fd(), Source::SocketV4)?;
        }
        if let Some(socket) = &sockets.v6 {
            watch(socket.as_fd(), Source::SocketV6)?;
        }
        let features = queues.device().features();
        // Without a virtio header, packets cannot be joined.
        let coalescer = Coalescer::new(features.vnet_header, features.vnet_header && features.uso);
        Ok(Engine {
            queues,
            sockets,
            protocol,
            channels,
            commands,
            epoll,
            counters,
            batch: Batch::new(),
            coalescer,
            spin: Spin::new(spin),
            outgoing: Backlog::new(READ_BUFFER),
            incoming: Backlog::new(1 << 16),
        })
    }

    /// Carries packets until told to stop.
    ///
    /// # Errors
    /// The device cannot be read, or the kernel does not wait for events: no packet can be carried
    /// any more.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let mut events = [EpollEvent::empty(); 3 + QUEUES_PER_ENGINE];
            let now = Instant::now();
            let timeout = if !self.outgoing.is_empty() || !self.incoming.is_empty() {
                EpollTimeout::ZERO
            } else if self.spin.looks_again(now) {
                // The receiver of the packet, or the sender of its answer, may need this CPU.
                std::thread::yield_now();
                EpollTimeout::ZERO
            } else {
                self.timeout(now)
            };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            // The only clock reading for the packets of this turn.
            let now = Instant::now();
            let is_ready = |source: Source| events[..ready].iter().any(|event| event.data() == source.number());
            if is_ready(Source::Commands) && !self.take_commands(now) {
                return self.finish(now);
            }
            let mut packets = self.receive(now, [is_ready(Source::SocketV4), is_ready(Source::SocketV6)]);
            self.queues.are_ready(|queue| is_ready(Source::Queue(queue)));
            packets += self.send(now)?;
            if packets > 0 {
                self.spin.carried(now, packets);
            }
            let mut outbox = Outbox::new(&mut self.batch, &mut self.sockets, &self.counters);
            self.protocol.on_deadline(now, &mut outbox);
            outbox.flush();
        }
    }

    fn timeout(&mut self, now: Instant) -> EpollTimeout {
        let Some(deadline) = self.protocol.next_deadline() else { return EpollTimeout::NONE };
        let wait = deadline.saturating_duration_since(now);
        // Rounded up: a wake-up before the deadline would need a second one.
        let wait = wait + Duration::from_micros(999);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    /// Carries what was read before the engine was told to stop.
    fn finish(&mut self, now: Instant) -> io::Result<()> {
        while !self.incoming.is_empty() {
            self.receive(now, [false, false]);
        }
        while !self.outgoing.is_empty() {
            self.queues.are_ready(|_| false);
            self.send(now)?;
        }
        Ok(())
    }

    /// Carries packets from the device to the network. Returns how many.
    fn send(&mut self, now: Instant) -> io::Result<usize> {
        let Engine { queues, sockets, protocol, channels, counters, batch, outgoing, .. } = self;
        let (mtu, has_header) = (queues.device().mtu(), queues.device().features().vnet_header);
        let mut outbox = Outbox::new(batch, sockets, counters);
        let (mut packets, mut was_small) = (0, false);
        for turn in 0..READS_PER_TURN {
            if packets >= PACKETS_PER_TURN {
                break;
            }
            // The first read of a turn may be the only one: carry it before reading again, which
            // would often find nothing.
            let mut goes_on = outgoing.is_empty() || turn > 0 && !was_small;
            while goes_on {
                let read = outgoing.read(|buffer| Ok::<_, io::Error>(queues.read(buffer)?.map(|length| (length, ()))));
                if read.is_err() {
                    outbox.flush();
                }
                goes_on = read? && turn > 0;
            }
            let next = outgoing.next(|read, flows| {
                flows.extend(ip::flow(split_header(has_header, read.bytes()).1));
                true
            });
            let Some(mut read) = next else { break };
            let (header, packet) = split_header(has_header, read.bytes());
            let sealed = seal_packet(mtu, header, packet, counters, &mut |destination, packets| {
                protocol.seal(now, destination, packets, &mut outbox)
            });
            packets += sealed.unwrap_or_else(|elsewhere| {
                hand_over(channels, elsewhere, (mtu, has_header), read.bytes().to_vec(), counters);
                elsewhere.packets
            });
            was_small = read.is_small();
            outgoing.done(read);
            if turn == 0 {
                outbox.flush();
            }
        }
        outbox.flush();
        Ok(packets)
    }

    /// Carries packets from the network to the device. Returns how many.
    fn receive(&mut self, now: Instant, ready: [bool; 2]) -> usize {
        let (mut packets, mut was_small) = (0, false);
        for turn in 0..READS_PER_TURN {
            if packets >= PACKETS_PER_TURN {
                break;
            }
            if self.incoming.is_empty() || turn > 0 && !was_small {
                self.take_in(ready, turn == 0);
            }
            let Engine { queues, sockets, protocol, counters, batch, coalescer, incoming, .. } = self;
            let next = incoming.next(|read, flows| protocol.flows(datagrams(read), flows));
            let Some(mut read) = next else { break };
            let run = datagrams(&mut read);
            let count = run.bytes.len().div_ceil(run.size);
            let mut outbox = Outbox::new(batch, sockets, counters);
            let mut inbox = DeviceInbox { device: queues.device(), coalescer, counters };
            protocol.open(now, run, &mut inbox, &mut outbox);
            outbox.flush();
            packets += count;
            if turn == 0 && count == 1 {
                // The datagram may be the only one, so it does not wait for others to be joined to.
                inbox.flush();
            }
            was_small = read.is_small();
            incoming.done(read);
        }
        let Engine { queues, coalescer, counters, .. } = self;
        DeviceInbox { device: queues.device(), coalescer, counters }.flush();
        packets
    }

    /// Reads datagrams from the sockets: all that are there and fit, or only the first.
    fn take_in(&mut self, ready: [bool; 2], is_first: bool) {
        for (socket, is_ready) in [&mut self.sockets.v4, &mut self.sockets.v6].into_iter().zip(ready) {
            let Some(socket) = socket.as_mut().filter(|_| is_ready) else { continue };
            let mut goes_on = !is_first || self.incoming.is_empty();
            while goes_on {
                let read = self.incoming.read(|buffer| Ok::<_, Infallible>(receive_run(socket, buffer)));
                goes_on = read == Ok(true) && !is_first;
            }
        }
    }

    /// Returns false once told to stop.
    fn take_commands(&mut self, now: Instant) -> bool {
        // Only resets the counter; its value does not matter.
        let _ = self.commands.wake.read();
        for _ in 0..READS_PER_TURN {
            match self.commands.received.try_recv() {
                Ok(Command::Run(work)) => {
                    let Engine { queues, sockets, protocol, counters, batch, coalescer, .. } = self;
                    let mut outbox = Outbox::new(batch, sockets, counters);
                    let mut inbox = DeviceInbox { device: queues.device(), coalescer, counters };
                    work(protocol, now, &mut inbox, &mut outbox);
                    inbox.flush();
                    outbox.flush();
                }
                Ok(Command::Inject(packet)) => {
                    let mut bytes = virtio::Header::PLAIN.to_bytes().to_vec();
                    bytes.extend_from_slice(&packet);
                    write_device(self.queues.device(), &self.counters, &bytes);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
        // There may be more commands, but packets come first.
        let _ = self.commands.wake.write(1);
        true
    }
}

/// The inbox for decrypted packets: it joins them, then writes them to the device.
struct DeviceInbox<'a> {
    device: &'a Device,
    coalescer: &'a mut Coalescer,
    counters: &'a Counters,
}

impl DeviceInbox<'_> {
    fn flush(&mut self) {
        let DeviceInbox { device, coalescer, counters, .. } = self;
        coalescer.flush(&mut |packet| write_device(device, counters, packet));
    }
}

impl Inbox for DeviceInbox<'_> {
    fn room(&mut self) -> &mut [u8] {
        self.coalescer.room()
    }

    fn deliver(&mut self, length: usize) {
        let DeviceInbox { device, coalescer, counters } = self;
        coalescer.deliver(length, &mut |packet| write_device(device, counters, packet));
    }
}

/// Checks the form of what was read, and gives its packets to `seal`. Returns how many, or which
/// engine must do it.
#[inline]
fn seal_packet(
    mtu: usize,
    header: Option<virtio::Header>,
    packet: &mut [u8],
    counters: &Counters,
    seal: &mut dyn FnMut(IpAddr, &mut Segments<'_>) -> Result<(), Elsewhere>,
) -> Result<usize, Elsewhere> {
    let (Some(header), Some(envelope)) = (header, ip::envelope(packet)) else {
        counters.drop_packet(TunnelDrop::Malformed);
        return Ok(1);
    };
    if envelope.destination == SELF_TEST_DESTINATION {
        counters.see_probe();
        return Ok(1);
    }
    // A fragment was already cut by a node to fit the device it left through, and nothing here
    // could make it smaller. The socket lets the kernel fragment the encrypted datagram.
    let is_fragment = ip::is_fragment(packet);
    let Ok(mut segments) = Segments::new(header, &mut packet[..envelope.length]) else {
        counters.drop_packet(TunnelDrop::Malformed);
        return Ok(1);
    };
    let (longest, count) = segments.extent();
    if longest > mtu && !is_fragment {
        counters.drop_packets(TunnelDrop::Oversized, count as u64);
    } else {
        seal(envelope.destination, &mut segments)?;
    }
    Ok(count)
}

/// Lets another engine encrypt what was read. If that engine finds that it belongs to a third one,
/// the peers are changing at this moment, and it drops the packets.
fn hand_over<P: Protocol>(
    channels: &Channels<P>,
    elsewhere: Elsewhere,
    (mtu, has_header): (usize, bool),
    mut bytes: Vec<u8>,
    counters: &Arc<Counters>,
) {
    let theirs = counters.clone();
    let taken = channels.hand_over(elsewhere.engine, bytes.len(), move |protocol, now, _, outbox| {
        let (header, packet) = split_header(has_header, &mut bytes);
        let seal = &mut |destination, packets: &mut Segments<'_>| protocol.seal(now, destination, packets, outbox);
        if let Err(elsewhere) = seal_packet(mtu, header, packet, &theirs, seal) {
            theirs.drop_packets(TunnelDrop::NoPeer, elsewhere.packets as u64);
        }
    });
    if taken {
        counters.hand_over(elsewhere.packets as u64);
    } else {
        counters.drop_packets(TunnelDrop::QueueFull, elsewhere.packets as u64);
    }
}

/// The packet that was read from the device and its virtio header; none if the header is missing or
/// invalid.
#[inline]
fn split_header(has_header: bool, bytes: &mut [u8]) -> (Option<virtio::Header>, &mut [u8]) {
    if !has_header {
        return (Some(virtio::Header::PLAIN), bytes);
    }
    if bytes.len() < virtio::HEADER_LENGTH {
        return (None, bytes);
    }
    let (header, packet) = bytes.split_at_mut(virtio::HEADER_LENGTH);
    (header.first_chunk().and_then(|header| virtio::Header::parse(*header)), packet)
}

/// The datagrams in a read of a socket.
#[inline]
fn datagrams(read: &mut Read<Received>) -> Datagrams<'_> {
    let Received { from, ecn, size, .. } = read.about;
    Datagrams { from, ecn, size, bytes: read.bytes() }
}

/// An error on the socket, such as an ICMP answer, concerns one packet, never the engine.
fn receive_run(socket: &mut Socket, buffer: &mut [u8]) -> Option<(usize, Received)> {
    match socket.receive(buffer) {
        Ok(run) => run.map(|run| (run.length, run)),
        Err(error) => {
            tracing::debug!(%error, "receiving failed");
            None
        }
    }
}

fn write_device(device: &Device, counters: &Counters, packet: &[u8]) {
    if let Err(error) = device.write(packet) {
        tracing::debug!(%error, device = device.name(), "the kernel refused a decrypted packet");
        counters.drop_packet(TunnelDrop::TunWriteFailed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::samples::{self, Family, Tcp};
    use crate::offload::virtio::{Gso, Header};

    fn sealed(header: Option<Header>, mut packet: Vec<u8>) -> (Vec<Vec<u8>>, Counters) {
        let counters = Counters::default();
        let mut packets = Vec::new();
        let seal = &mut |_, segments: &mut Segments<'_>| {
            while let Some(packet) = segments.next() {
                packets.push(packet.to_vec());
            }
            Ok(())
        };
        seal_packet(1420, header, &mut packet, &counters, seal).unwrap();
        (packets, counters)
    }

    #[test]
    fn padding_behind_a_packet_is_not_sealed() {
        let packet = samples::udp(Family::V4, 1, 2, b"hello");
        let mut padded = packet.clone();
        padded.resize(60, 0);
        let (packets, counters) = sealed(Some(Header::PLAIN), padded);
        assert_eq!(packets, [packet]);
        assert_eq!(counters.drops().total(), 0);
    }

    #[test]
    fn oversized_malformed_and_self_test_packets_go_no_further() {
        let (packets, counters) = sealed(Some(Header::PLAIN), Tcp::new(Family::V4, 1, &[0; 1400]).build());
        assert!(packets.is_empty());
        assert_eq!(counters.drops().of(TunnelDrop::Oversized), 1);

        let mut fragment = samples::udp(Family::V4, 1, 2, &[0; 1422]);
        fragment[6] |= 0x20;
        let (packets, counters) = sealed(Some(Header::PLAIN), fragment);
        assert_eq!((packets.len(), counters.drops().total()), (1, 0), "a fragment goes as it is");

        for (header, packet) in [
            (Some(Header::PLAIN), vec![0x45; 10]),
            (Some(Header::PLAIN), vec![]),
            (None, samples::udp(Family::V4, 1, 2, b"hello")),
            (Some(Header { gso: Gso::TcpV4, ..Header::PLAIN }), samples::udp(Family::V4, 1, 2, b"hello")),
        ] {
            let (packets, counters) = sealed(header, packet);
            assert!(packets.is_empty());
            assert_eq!(counters.drops().of(TunnelDrop::Malformed), 1);
        }

        let mut probe = samples::udp(Family::V6, 1, 2, b"probe");
        probe[24..40].copy_from_slice(&SELF_TEST_DESTINATION.octets());
        let (packets, counters) = sealed(Some(Header::PLAIN), probe);
        assert!(packets.is_empty());
        assert_eq!(counters.probes_seen(), 1);
        assert_eq!(counters.drops().total(), 0);
    }
}

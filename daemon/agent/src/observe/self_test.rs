//! The self-test: real packets through the real hooks. The node is ready when they arrived where
//! they must, not when something was loaded.
//!
//! | probe | sent | proves |
//! |---|---|---|
//! | drop | from a packet socket on each guarded device that is up | `to_wire` runs on its egress |
//! | turn | the same | `to_wire` redirects, `from_wire` runs on its ingress |
//! | tunnel | the same | `to_wire` puts packets into the tunnel, and the backend takes them |
//! | inject | out of the tunnel device | `from_tunnel` runs |
//!
//! Probes carry addresses in the discard prefix (RFC 6666). The first three never leave the node,
//! because the programs consume them. If a program is missing they do leave, which is harmless, and
//! the test fails.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use hauberk_abi::layout::probe;
use hauberk_abi::reason::DropReason;
use hauberk_backend::Backend;
use hauberk_datapath::{Pins, rivals};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket};

use super::MapReader;
use crate::state::Device;
use crate::syscalls;

/// How long a probe may take.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// Where probes are addressed to: a locally administered address that no interface has.
const RECEIVER: [u8; 6] = [0x02, 0x68, 0x61, 0x75, 0x62, 0x01];

/// The result of the last self-test, as far as it still counts.
#[derive(Debug, Default)]
pub struct SelfTest {
    outcome: Option<Result<(), String>>,
    /// How often the earlier results were set aside.
    asked: u64,
}

impl SelfTest {
    /// The last result; none before the first, and none after [`SelfTest::ask`].
    pub fn outcome(&self) -> Option<&Result<(), String>> {
        self.outcome.as_ref()
    }

    /// Asks for a new test: something changed that the last one did not see. The result of a test
    /// that runs now does not count either: it may have passed the device before the change.
    pub fn ask(&mut self) {
        self.outcome = None;
        self.asked += 1;
    }

    /// A test begins. The number belongs to its result.
    pub fn begin(&self) -> u64 {
        self.asked
    }

    /// A test has ended. Returns whether its result counts and is another than the last.
    pub fn end(&mut self, begun: u64, outcome: Result<(), String>) -> bool {
        let counts = begun == self.asked && self.outcome.as_ref() != Some(&outcome);
        if counts {
            self.outcome = Some(outcome);
        }
        counts
    }
}

/// Sends every probe on every device, and one out of the tunnel. The other devices are tested even
/// if one fails.
///
/// # Errors
/// A sentence for each device: which program was not seen to run, and what to do.
pub async fn run(devices: &[Device], backend: &dyn Backend, map_reader: &MapReader, pins: &Pins) -> Result<(), String> {
    let mut failures = Vec::new();
    for device in devices {
        if let Err(failure) = test(device, backend, map_reader).await {
            let why = rivals::words(pins, &device.name).map(|why| format!("; {why}")).unwrap_or_default();
            failures.push(failure + &why);
        }
    }
    let inject = || {
        backend.probe(packet(probe::DROP));
        Ok(true)
    };
    if let Err(failure) =
        expect(|| self_tests(map_reader), inject, "from_tunnel does not run on the tunnel device").await
    {
        failures.push(failure);
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

async fn test(device: &Device, backend: &dyn Backend, map_reader: &MapReader) -> Result<(), String> {
    let name = &device.name;
    let dropped = || self_tests(map_reader);
    let arrived = || backend.stats().map_or(0, |stats| stats.probes);
    let send = |destination| send(device, destination);
    expect(dropped, || send(probe::DROP), &format!("to_wire does not run on the egress of {name}")).await?;
    expect(dropped, || send(probe::TURN), &format!("from_wire does not run on the ingress of {name}")).await?;
    expect(arrived, || send(probe::TUNNEL), &format!("packets redirected on {name} do not reach the tunnel")).await
}

fn self_tests(map_reader: &MapReader) -> u64 {
    let drops = map_reader.maps().drops().unwrap_or_default();
    drops.into_iter().find(|(reason, _)| *reason == DropReason::SelfTest).map_or(0, |(_, count)| count)
}

/// Sends a probe and waits until the counter has moved. It does not wait if the probe could not be
/// sent because nothing leaves by that device now.
async fn expect(
    counter: impl Fn() -> u64,
    send: impl FnOnce() -> Result<bool, String>,
    failure: &str,
) -> Result<(), String> {
    let before = counter();
    if !send()? {
        return Ok(());
    }
    let moved = async {
        while counter() <= before {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.map_err(|_| {
        format!(
            "{failure}: a probe was not seen within {} s; did another program take its place? See `hauberk bpf`",
            PATIENCE.as_secs()
        )
    })
}

/// Returns whether the device takes packets. A device that is down or gone does not, and needs no
/// test.
fn send(device: &Device, destination: [u8; 16]) -> Result<bool, String> {
    match send_frame(device, destination) {
        Ok(()) => Ok(true),
        Err(Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV) => Ok(false),
        Err(error) => {
            let hint = match error {
                Errno::EPERM | Errno::EACCES => "; does the agent have CAP_NET_RAW?",
                Errno::EMFILE | Errno::ENFILE => "; the agent has too many files open",
                _ => "",
            };
            Err(format!("cannot send a probe on {}: {}{hint}", device.name, error.desc()))
        }
    }
}

fn send_frame(device: &Device, destination: [u8; 16]) -> Result<(), Errno> {
    let socket: OwnedFd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
    let mut frame = Vec::new();
    if device.ethernet {
        frame.extend(RECEIVER);
        frame.extend([0x02, 0x68, 0x61, 0x75, 0x62, 0x02, 0x86, 0xdd]);
    }
    frame.extend(packet(destination));
    let address =
        syscalls::packet_address(device.index, nix::libc::ETH_P_IPV6 as u16, RECEIVER).map_err(|_| Errno::EINVAL)?;
    match sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty()) {
        // ENOBUFS tells a packet socket that a program dropped the frame on egress, as expected.
        Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// An empty UDP packet over IPv6 (RFC 8200, RFC 768), from the discard prefix.
fn packet(destination: [u8; 16]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 1];
    packet.extend([0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(destination);
    packet.extend([0, 9, 0, 9, 0, 8, 0xff, 0xff]);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_from_before_a_change_does_not_count() {
        let mut test = SelfTest::default();
        let begun = test.begin();
        assert!(test.end(begun, Ok(())) && test.outcome() == Some(&Ok(())));
        assert!(!test.end(test.begin(), Ok(())), "the same result again is no news");
        let begun = test.begin();
        test.ask();
        assert!(!test.end(begun, Ok(())) && test.outcome().is_none());
        assert!(test.end(test.begin(), Err("from_wire does not run".into())));
        assert!(test.end(test.begin(), Ok(())) && test.outcome() == Some(&Ok(())));
    }
}

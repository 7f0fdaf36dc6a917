//! Services for the suites: their objects, servers that say who they are, and clients that ask.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::manifests::{endpoint, endpoint_slice, service};
use hauberk_netns::{Cluster, Family, Netns, Party, Pod, eventually};
use serde_json::Value;

/// The port of services, and that of their backends.
pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;

pub fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last.into()).into(),
    }
}

pub const PORTS: [(&str, &str, u16); 2] = [("tcp", "TCP", PORT), ("udp", "UDP", PORT)];
pub const TARGETS: [(&str, &str, u16); 2] = [("tcp", "TCP", TARGET), ("udp", "UDP", TARGET)];

/// Writes a service of both families whose cluster addresses end in `last`.
pub fn put_service(cluster: &Cluster, name: &str, last: u8, extra: &Value) -> Result<()> {
    let addresses = Family::ALL.map(|family| address(family, last));
    cluster.manifests.put("service", name, &service("payments", name, &addresses, &PORTS, extra))
}

/// Writes the service's endpoints.
pub fn put_backends(cluster: &Cluster, name: &str, pods: &[&Pod]) -> Result<()> {
    put_endpoints(cluster, name, |family| {
        pods.iter().map(|pod| endpoint(pod.address(family), &pod.node.name)).collect()
    })
}

pub fn put_endpoints(cluster: &Cluster, name: &str, endpoints: impl Fn(Family) -> Vec<Value>) -> Result<()> {
    for family in Family::ALL {
        let slice = format!("{name}-{family}");
        let object = endpoint_slice(("payments", name), &slice, family == Family::V4, &TARGETS, &endpoints(family));
        cluster.manifests.put("slice", &slice, &object)?;
    }
    Ok(())
}

pub fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(10))
}

/// A server that says who it is: to each TCP connection at once, and to each datagram.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    pub fn start(pod: &Pod) -> Result<Server> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let (ready, is_ready) = std::sync::mpsc::channel();
        for family in Family::ALL {
            for tcp in [true, false] {
                let (netns, stop, ready) = (pod.netns.clone(), stop.clone(), ready.clone());
                let (at, name) = (SocketAddr::new(pod.address(family), TARGET), pod.name.clone());
                threads.push(thread::spawn(move || {
                    netns.enter()?;
                    if tcp { serve_tcp(at, &name, &stop, &ready) } else { serve_udp(at, &name, &stop, &ready) }
                }));
            }
        }
        for _ in 0..threads.len() {
            is_ready.recv_timeout(Duration::from_secs(60)).context("a server did not start")?;
        }
        Ok(Server { stop, threads })
    }

    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap_or_else(|_| bail!("a server panicked"))?;
        }
        Ok(())
    }
}

fn serve_tcp(at: SocketAddr, name: &str, stop: &AtomicBool, ready: &std::sync::mpsc::Sender<()>) -> Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("listen at {at}"))?;
    listener.set_nonblocking(true).context("O_NONBLOCK")?;
    ready.send(()).ok();
    while !stop.load(Ordering::SeqCst) {
        match listener.accept() {
            // The client may be gone by now.
            Ok((mut stream, _)) => drop(stream.write_all(name.as_bytes())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(())
}

fn serve_udp(at: SocketAddr, name: &str, stop: &AtomicBool, ready: &std::sync::mpsc::Sender<()>) -> Result<()> {
    let socket = UdpSocket::bind(at).with_context(|| format!("bind to {at}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(50))).context("SO_RCVTIMEO")?;
    ready.send(()).ok();
    let mut buffer = [0; 64];
    while !stop.load(Ordering::SeqCst) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            socket.send_to(name.as_bytes(), client).ok();
        }
    }
    Ok(())
}

/// The name of the backend that a new TCP connection gets.
pub fn backend_of(from: &Netns, to: SocketAddr) -> Result<String> {
    from.within(|| {
        let mut stream = connect(to).with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).context("SO_RCVTIMEO")?;
        let mut name = String::new();
        stream.read_to_string(&mut name).with_context(|| format!("read from {to}"))?;
        Ok(name)
    })
}

/// How many of `count` connections each backend gets.
pub fn spread(from: &Netns, to: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut spread = BTreeMap::new();
    for _ in 0..count {
        *spread.entry(backend_of(from, to)?).or_default() += 1;
    }
    Ok(spread)
}

/// Waits until new connections reach these backends, each of them, and no other.
pub fn wait_spread(from: &Party, to: SocketAddr, backends: &[&str]) -> Result<()> {
    eventually(format!("{} to reach {backends:?} at {to}", from.name), || {
        let spread = spread(&from.netns, to, 24)?;
        let names: Vec<&str> = spread.keys().map(String::as_str).collect();
        ensure!(names == backends, "it reaches {spread:?}");
        Ok(Some(()))
    })
}

/// Asks until an answer comes, and returns who answered.
pub fn ask(socket: &UdpSocket, service: SocketAddr) -> Result<String> {
    for _ in 0..40 {
        socket.send_to(b"who", service).context("sendto")?;
        let mut buffer = [0; 64];
        if let Ok((count, from)) = socket.recv_from(&mut buffer) {
            ensure!(from == service, "an answer came from {from}");
            return Ok(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
    }
    bail!("no answer from {service}")
}

//! A pod that listens to `hauberk-pod shout` and records the senders.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hauberk_netns::{Family, Marker, Party};

const PORT: u16 = 7777;

/// Listens at both addresses of a pod until it is dropped.
pub struct Ear {
    /// The pod that listens.
    pub pod: Party,
    /// The text to listen for.
    pub marker: Marker,
    listening: Arc<AtomicBool>,
    heard: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Ear {
    /// Starts listening for a unique text.
    pub fn open(pod: Party) -> Result<Ear> {
        let marker = Marker::unique();
        let ear = Ear { pod, marker, listening: Arc::new(AtomicBool::new(true)), heard: Arc::default() };
        for family in Family::ALL {
            let address = SocketAddr::new(ear.pod.address(family), PORT);
            let socket =
                ear.pod.netns.within(|| UdpSocket::bind(address).with_context(|| format!("bind {address}")))?;
            socket.set_read_timeout(Some(Duration::from_millis(50))).context("set timeout")?;
            let (listening, heard) = (ear.listening.clone(), ear.heard.clone());
            thread::spawn(move || listen(&socket, marker, &listening, &heard));
        }
        Ok(ear)
    }

    /// The arguments with which a container sends the text to this pod.
    pub fn shout(&self, family: Family) -> [String; 3] {
        let target = SocketAddr::new(self.pod.address(family), PORT);
        ["shout".to_owned(), target.to_string(), self.marker.to_string()]
    }

    /// The addresses that the text came from.
    pub fn heard(&self) -> BTreeSet<IpAddr> {
        locked(&self.heard).clone()
    }

    /// Forgets the senders so far.
    pub fn forget(&self) {
        locked(&self.heard).clear();
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.listening.store(false, Ordering::SeqCst);
    }
}

fn listen(socket: &UdpSocket, marker: Marker, listening: &AtomicBool, heard: &Mutex<BTreeSet<IpAddr>>) {
    let mut buffer = [0; 2048];
    while listening.load(Ordering::SeqCst) {
        // A timeout, or the pod is being removed.
        let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
        if marker.is_in(&buffer[..count]) {
            locked(heard).insert(from.ip());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! WireGuard's cross-platform interface on a unix socket (wireguard.com/xplatform), so that the
//! standard `wg show` sees the tunnel.
//!
//! A [`UapiView`] answers reads. Writes are refused with `EPERM`: the agent is the only writer. The
//! protocol's `private_key` line is left out. `wg show` derives the interface's public key from
//! that line alone, so it shows none. A made-up private key would make it show a wrong public key,
//! and the true one never leaves the agent. `hauberk status` shows the public key.
//!
//! [`request`] parses a client's request and [`mod@answer`] writes the answer; both are pure.
//! [`serve`] talks to clients, with limits on time, size and number of clients.

mod answer;
pub mod request;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use answer::answer;
pub use request::{Progress, Request, parse};

/// The most clients at a time.
const MAX_CLIENTS: usize = 8;
/// A client that sends nothing for this long is disconnected.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot offer the WireGuard interface on {path}: {source}; is another agent running, or the folder read-only?")]
pub struct UapiError {
    path: PathBuf,
    source: io::Error,
}

/// The tunnel for `wg show`.
pub trait UapiView: Send + Sync + 'static {
    /// The interface now.
    fn interface(&self) -> Interface;
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Interface {
    /// UDP port.
    pub port: u16,
    /// Peers; a node with two keys is two peers.
    pub peers: Vec<PeerView>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PeerView {
    /// Its public key.
    pub public_key: [u8; 32],
    /// Where its tunnel listens.
    pub endpoint: Option<SocketAddr>,
    /// The prefixes that it may use as source.
    pub allowed_ips: Vec<IpNet>,
    /// When the last handshake succeeded.
    pub latest_handshake: Option<SystemTime>,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Seconds between keepalives; 0 for none.
    pub keepalive_seconds: u16,
}

/// Binds the socket, readable and writable by the owner alone. It replaces a stale socket of an
/// earlier agent, but not a live one.
///
/// # Errors
/// [`UapiError`].
pub fn bind(path: &Path) -> Result<UnixListener, UapiError> {
    let failed = |source| UapiError { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(failed(io::ErrorKind::AddrInUse.into()));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Answers clients until it is dropped.
pub async fn serve(listener: UnixListener, view: Arc<dyn UapiView>) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let view = Arc::clone(&view);
                tokio::spawn(async move {
                    if let Err(error) = talk(stream, view.as_ref()).await {
                        tracing::debug!(%error, "a client of the WireGuard interface went away");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the WireGuard interface");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Answers one client's requests, one after the other.
async fn talk(mut stream: UnixStream, view: &dyn UapiView) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        match parse(&buffer) {
            Progress::Incomplete => {
                let mut chunk = [0; 4096];
                match timeout(PATIENCE, stream.read(&mut chunk)).await?? {
                    0 => return Ok(()),
                    count => buffer.extend_from_slice(&chunk[..count]),
                }
            }
            Progress::Complete { request, length } => {
                buffer.drain(..length);
                if request == Request::Set {
                    tracing::warn!(
                        "a client of the WireGuard interface tried to change the tunnel: refused; hauberk is its only writer"
                    );
                }
                let text = answer(request, || view.interface());
                timeout(PATIENCE, stream.write_all(text.as_bytes())).await??;
            }
            Progress::TooLong => {
                let text = answer(Request::Unknown, Interface::default);
                return timeout(PATIENCE, stream.write_all(text.as_bytes())).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Fixed(Interface);

    impl UapiView for Fixed {
        fn interface(&self) -> Interface {
            self.0.clone()
        }
    }

    fn view() -> Arc<dyn UapiView> {
        Arc::new(Fixed(Interface {
            port: 51840,
            peers: vec![PeerView {
                public_key: [7; 32],
                endpoint: "[fd99::2]:51840".parse().ok(),
                allowed_ips: vec!["10.244.2.0/24".parse().unwrap(), "fd00:2::/64".parse().unwrap()],
                latest_handshake: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
                received_bytes: 4096,
                sent_bytes: 8192,
                keepalive_seconds: 25,
            }],
        }))
    }

    async fn ask(path: &Path, text: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn gets_are_answered_and_sets_refused_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard/hauberk0.sock");
        let server = tokio::spawn(serve(bind(&path).unwrap(), view()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let answer = ask(&path, "get=1\n\nset=1\nprivate_key=00\nreplace_peers=true\n\nget=1\n\nfoo=1\n\n").await;
        let answers: Vec<&str> = answer.split_terminator("\n\n").collect();
        assert_eq!(answers.len(), 4, "{answer}");
        assert!(answers[0].starts_with("listen_port=51840\n") && answers[0].ends_with("errno=0"));
        assert_eq!(answers[1], "errno=-1");
        assert_eq!(answers[2], answers[0]);
        assert_eq!(answers[3], "errno=-22");
        assert!(!answer.contains("private_key"));
        let mut endless = UnixStream::connect(&path).await.unwrap();
        assert!(endless.write_all(&vec![b'x'; 4 << 20]).await.is_err(), "what never ends is not read to the end");
        assert!(bind(&path).is_err(), "a live socket is not taken away");
        server.abort();
        let _ = server.await;
        bind(&path).unwrap();
    }

    /// `wg` looks in one folder only, so this test must be allowed to write there.
    #[tokio::test(flavor = "multi_thread")]
    async fn stock_wg_shows_the_tunnel_and_cannot_change_it() {
        let name = format!("hbkt{}", std::process::id());
        let path = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        let listener = match bind(&path) {
            Ok(listener) if Command::new("wg").arg("--version").output().is_ok() => listener,
            _ => {
                eprintln!("SKIPPED: needs root and wireguard-tools");
                return;
            }
        };
        let server = tokio::spawn(serve(listener, view()));
        let wg = |arguments: &'static [&'static str]| {
            let name = name.clone();
            tokio::task::spawn_blocking(move || {
                let arguments = arguments.iter().map(|a| if *a == "NAME" { name.as_str() } else { *a });
                let output = Command::new("wg").args(arguments).output().unwrap();
                (
                    String::from_utf8(output.stdout).unwrap(),
                    String::from_utf8(output.stderr).unwrap(),
                    output.status.success(),
                )
            })
        };
        let (shown, errors, success) = wg(&["show", "NAME"]).await.unwrap();
        assert!(success, "{errors}");
        for part in [
            "listening port: 51840",
            "BwcHBwcH",
            "[fd99::2]:51840",
            "10.244.2.0/24, fd00:2::/64",
            "4.00 KiB received, 8.00 KiB sent",
            "every 25 seconds",
        ] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        let (dump, ..) = wg(&["show", "NAME", "dump"]).await.unwrap();
        assert!(dump.starts_with("(none)\t(none)\t51840\toff\n"), "{dump}");
        let (handshakes, ..) = wg(&["show", "NAME", "latest-handshakes"]).await.unwrap();
        assert!(handshakes.contains("\t1700000000"), "{handshakes}");
        let (transfer, ..) = wg(&["show", "NAME", "transfer"]).await.unwrap();
        assert!(transfer.contains("\t4096\t8192"), "{transfer}");
        let (_, errors, success) = wg(&["set", "NAME", "listen-port", "1"]).await.unwrap();
        assert!(!success && errors.contains("Operation not permitted"), "{errors}");
        server.abort();
        fs::remove_file(&path).unwrap();
    }
}

//! How many clients may be connected, and for how long: each connection is an open file, and the
//! agent needs its files to protect pods.
//!
//! hyper closes a connection on which no complete request arrives for a while. This module limits
//! the number of connections. On the unix socket, which only root can use, further clients wait. On
//! TCP any host can connect, so the address with the most connections loses its oldest one:
//! connections that one client keeps open do not keep another from its answer.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, Id, JoinSet};
use tracing::debug;

/// The largest request without its body, bytes.
const REQUEST_BYTES: usize = 16 << 10;

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// How long to wait for a complete request, the first or a later one.
    pub(crate) request: Duration,
    /// The age at which a connection takes no further request. At twice this age it is cut off.
    /// None for never.
    pub(crate) lifetime: Option<Duration>,
}

/// A listener that can tell connections apart by their origin.
pub(crate) trait Bounded: Listener {
    /// The other end's address, if connections from there may displace each other.
    fn from(address: &Self::Addr) -> Option<IpAddr>;
}

impl Bounded for TcpListener {
    fn from(address: &Self::Addr) -> Option<IpAddr> {
        // A host with one IPv6 address usually has a whole /64.
        Some(match address.ip().to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
            v4 => v4,
        })
    }
}

impl Bounded for UnixListener {
    fn from(_: &Self::Addr) -> Option<IpAddr> {
        None
    }
}

/// Answers until the task is dropped.
pub(crate) async fn serve<L: Bounded>(listener: L, router: Router, bounds: Bounds) -> io::Result<()> {
    serve_each(listener, |_| router.clone(), bounds).await
}

/// Answers until the task is dropped; what, depends on where a connection was accepted.
pub(crate) async fn serve_each<L: Bounded>(
    mut listener: L,
    router: impl Fn(&L::Addr) -> Router,
    bounds: Bounds,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let mut open = Open::default();
    loop {
        // axum's listeners wait and retry when accepting fails, for example when files run out.
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = tasks.join_next_with_id() => {
                open.remove(id_of(&ended));
                continue;
            }
        };
        let from = L::from(&address);
        while tasks.len() >= bounds.connections {
            if from.is_some() {
                open.displace();
            }
            match tasks.join_next_with_id().await {
                Some(ended) => open.remove(id_of(&ended)),
                None => break,
            }
        }
        let task = tasks.spawn(answer(stream, router(&address), bounds));
        open.0.push((from, task));
    }
}

/// Answers one connection's requests.
async fn answer(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    router: Router,
    bounds: Bounds,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.request)
        .max_buf_size(REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let mut ended = None;
    match bounds.lifetime {
        None => ended = Some(connection.await),
        Some(lifetime) => {
            if let Ok(outcome) = tokio::time::timeout(lifetime, connection.as_mut()).await {
                ended = Some(outcome);
            } else {
                connection.as_mut().graceful_shutdown();
                if let Ok(outcome) = tokio::time::timeout(lifetime, connection).await {
                    ended = Some(outcome);
                }
            }
        }
    }
    if let Some(Err(error)) = ended {
        debug!(%error, "a connection to the API ended");
    }
}

/// The connections, oldest first.
#[derive(Default)]
struct Open(Vec<(Option<IpAddr>, AbortHandle)>);

impl Open {
    /// Closes the oldest connection of the address that has the most of them.
    fn displace(&mut self) {
        let count = |address: &Option<IpAddr>| self.0.iter().filter(|(from, _)| from == address).count();
        let most = self.0.iter().map(|(from, _)| count(from)).max();
        let oldest = self.0.iter().find(|(from, _)| Some(count(from)) == most);
        if let Some((_, task)) = oldest {
            task.abort();
        }
    }

    fn remove(&mut self, ended: Id) {
        self.0.retain(|(_, task)| task.id() != ended);
    }
}

fn id_of(ended: &Result<(Id, ()), tokio::task::JoinError>) -> Id {
    match ended {
        Ok((id, ())) => *id,
        Err(error) => error.id(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream, UnixStream};
    use tokio::sync::Notify;

    use super::*;

    const BOUNDS: Bounds = Bounds { connections: 8, request: Duration::from_secs(3600), lifetime: None };

    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn router() -> Router {
        Router::new().route("/", get(async || "well\n"))
    }

    async fn start(router: Router, bounds: Bounds) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, router, bounds));
        address
    }

    async fn connect(from: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(to).await.unwrap()
    }

    /// Everything that arrives until the connection is closed.
    async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
        let mut text = Vec::new();
        // A connection that was cut off may reset its last bytes.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn ask(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) -> String {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await;
        rest(stream).await
    }

    #[tokio::test]
    async fn idle_connections_take_no_more_files_than_the_bound_and_a_scraper_has_its_answer() {
        let to = start(router(), BOUNDS).await;
        let before = open_files();
        let mut idle = Vec::new();
        for _ in 0..200 {
            idle.push(connect("127.0.0.1", to).await);
        }
        for _ in 0..3 {
            assert!(ask(&mut connect("127.0.0.2", to).await).await.ends_with("well\n"));
            assert!(ask(&mut connect("127.0.0.1", to).await).await.ends_with("well\n"));
        }
        // This process has both ends: all of the clients', and a limited number of the agent's (and
        // files of other tests).
        let mut displaced = 0;
        for stream in idle.drain(..192) {
            let mut stream = stream;
            assert_eq!(rest(&mut stream).await, "");
            displaced += 1;
        }
        assert_eq!(displaced, 192);
        assert!(open_files() < before + 100, "{before} open files before, {} now", open_files());
    }

    #[tokio::test]
    async fn the_one_with_the_most_connections_loses_its_oldest() {
        let started = Arc::new(Notify::new());
        let go = Arc::new(Notify::new());
        let (entered, released) = (started.clone(), go.clone());
        let slow = get(async move || {
            entered.notify_one();
            released.notified().await;
            "slow\n"
        });
        let to = start(router().route("/slow", slow), BOUNDS).await;
        let mut scraper = connect("127.0.0.2", to).await;
        scraper.write_all(b"GET /slow HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await.unwrap();
        started.notified().await;
        let mut others = Vec::new();
        for _ in 0..40 {
            others.push(connect("127.0.0.3", to).await);
        }
        assert_eq!(rest(&mut others[0]).await, "");
        assert!(ask(&mut connect("127.0.0.4", to).await).await.ends_with("well\n"));
        go.notify_one();
        assert!(rest(&mut scraper).await.ends_with("slow\n"));
    }

    #[tokio::test]
    async fn a_connection_without_a_whole_request_is_closed() {
        let to = start(router(), Bounds { request: Duration::from_millis(50), ..BOUNDS }).await;
        let mut silent = connect("127.0.0.1", to).await;
        let mut slow = connect("127.0.0.1", to).await;
        slow.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        let mut kept = connect("127.0.0.1", to).await;
        kept.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
        assert!(!rest(&mut silent).await.contains("200"));
        assert!(!rest(&mut slow).await.contains("200"));
        // It got its answer, and no further request came.
        assert!(rest(&mut kept).await.ends_with("well\n"));
    }

    #[tokio::test]
    async fn one_that_does_not_read_its_answer_is_cut_off() {
        let endless = get(async || axum::body::Body::from(vec![b'x'; 64 << 20]));
        let bounds = Bounds { lifetime: Some(Duration::from_millis(50)), ..BOUNDS };
        let to = start(Router::new().route("/", endless), bounds).await;
        let mut stream = connect("127.0.0.1", to).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
        // The client does not read before the agent has given up.
        while stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn requests_have_a_largest_size() {
        let to = start(router(), BOUNDS).await;
        let mut stream = connect("127.0.0.1", to).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\nx: ").await.unwrap();
        let _ = stream.write_all(&vec![b'x'; 2 * REQUEST_BYTES]).await;
        assert!(!rest(&mut stream).await.contains("200"));
    }

    #[tokio::test]
    async fn on_the_unix_socket_more_have_to_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        tokio::spawn(serve(UnixListener::bind(&path).unwrap(), router(), BOUNDS));
        let mut held = Vec::new();
        for _ in 0..BOUNDS.connections {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
            stream.readable().await.unwrap();
            held.push(stream);
        }
        let mut waiting = UnixStream::connect(&path).await.unwrap();
        let answer = tokio::spawn(async move { ask(&mut waiting).await });
        // No other connection was displaced for it.
        assert!(ask(held.last_mut().unwrap()).await.ends_with("well\n"));
        assert!(answer.await.unwrap().ends_with("well\n"));
    }
}

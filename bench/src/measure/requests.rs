//! HTTP requests and connections per second, measured by wrk against a minimal server. Both have a
//! thread per CPU, so that the limit is the machine and not a single thread on the CPU where the
//! kernel does most of its work.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::routing::get;
use hauberk_netns::Party;
use hauberk_netns::netns::feed;
use tokio::sync::oneshot;

/// Number of parallel connections.
const CONNECTIONS: &str = "32";
/// Bytes of a response.
const BODY: usize = 1024;

/// Requests per second.
pub fn run(client: &Party, server: &Party, fresh: bool, seconds: u32) -> Result<f64> {
    let listener = server.netns.within(|| {
        let listener = TcpListener::bind(SocketAddr::from((server.v4, 0))).context("listen")?;
        listener.set_nonblocking(true).context("set nonblocking")?;
        Ok(listener)
    })?;
    let address = listener.local_addr().context("own address")?;
    let (stop, stopped) = oneshot::channel();
    // The accepted sockets are in the listener's namespace, in whatever namespace the thread is.
    let serving = thread::spawn(move || serve(listener, stopped));
    let mut command = client.netns.command("wrk");
    let threads = threads()?.to_string();
    command.args(["--threads", &threads, "--connections", CONNECTIONS, "--duration", &format!("{seconds}s")]);
    if fresh {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(format!("http://{address}/"));
    let said = feed(command, "").context("run wrk: is it installed?");
    stop.send(()).ok();
    serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let said = said?;
    let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).with_context(|| said.clone())?;
    let rate = rate.trim().parse().with_context(|| said.clone())?;
    ensure!(rate > 0.0, "wrk had no answer: {said}");
    Ok(rate)
}

fn threads() -> Result<usize> {
    Ok(thread::available_parallelism().context("count the CPUs")?.get())
}

fn serve(listener: TcpListener, stopped: oneshot::Receiver<()>) -> Result<()> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(threads()?).enable_all().build().context("build a runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("take over the listener")?;
        let body = axum::body::Bytes::from(vec![b'x'; BODY]);
        let served = axum::serve(
            listener,
            Router::new().route(
                "/",
                get(move || {
                    let body = body.clone();
                    async move { body }
                }),
            ),
        );
        tokio::select! {
            result = served => result.context("serve"),
            _ = stopped => Ok(()),
        }
    })
}

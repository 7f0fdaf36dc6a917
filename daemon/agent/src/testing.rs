//! For tests that play the API server's part: a server on this machine, and the client the agent would have for it.

use axum::Router;
use kube::{Client, Config};

/// Serves until the test ends; the address.
pub(crate) async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A client that tries nothing again by itself, as the agent's.
pub(crate) fn client(address: &str) -> Client {
    let mut config = Config::new(address.parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

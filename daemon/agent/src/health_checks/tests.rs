use std::net::Ipv4Addr;

use hauberk_core::names::ServiceName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn check(port: u16, name: &str, local_endpoints: usize) -> HealthCheck {
    HealthCheck { port, service: ServiceName::new("shop", name), local_endpoints }
}

/// A port that nobody listens at.
async fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port()
}

fn ports() -> (SharedState, Ports) {
    let agent = SharedState::new(crate::testing::agent("n1"));
    let ports = Ports::new(agent.clone(), BOUNDS);
    (agent, ports)
}

/// The whole answer to a request for any path.
async fn ask(port: u16) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    stream.write_all(b"GET /any HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn the_answer_is_that_of_kube_proxy() {
    let (_agent, mut ports) = ports();
    let port = free_port().await;
    assert!(ports.follow(vec![check(port, "web", 2)]).await.is_empty());
    let text = ask(port).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "the agent is not ready: {text}");
    for line in [
        "\r\ncontent-type: application/json\r\n",
        "\r\nx-content-type-options: nosniff\r\n",
        "\r\nx-load-balancing-endpoint-weight: 2\r\n",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    let body = r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":false}"#;
    assert_eq!(text.split("\r\n\r\n").nth(1), Some(body));
}

#[test]
fn clients_are_sent_here_if_there_are_endpoints_and_the_agent_is_ready() {
    assert_eq!(status(1, true), StatusCode::OK);
    for (local_endpoints, ready) in [(0, true), (1, false), (0, false)] {
        assert_eq!(status(local_endpoints, ready), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn each_port_has_its_service_s_answer_as_it_is_now() {
    let (_agent, mut ports) = ports();
    let (web, mail) = (free_port().await, free_port().await);
    assert!(ports.follow(vec![check(web, "web", 1), check(mail, "mail", 3)]).await.is_empty());
    assert!(ask(web).await.contains(r#""name":"web"},"localEndpoints":1"#));
    assert!(ask(mail).await.contains(r#""name":"mail"},"localEndpoints":3"#));
    assert!(ports.follow(vec![check(web, "web", 0), check(mail, "mail", 3)]).await.is_empty());
    assert!(ask(web).await.contains(r#""name":"web"},"localEndpoints":0"#));
}

#[tokio::test]
async fn a_port_is_closed_with_its_service() {
    let (_agent, mut ports) = ports();
    let port = free_port().await;
    assert!(ports.follow(vec![check(port, "web", 1)]).await.is_empty());
    let mut kept = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    // The answer shows that the connection was accepted before the end.
    kept.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
    kept.readable().await.unwrap();
    assert!(ports.follow(Vec::new()).await.is_empty());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    kept.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).await.unwrap();
    let last = text.rfind("HTTP/1.1 ").unwrap();
    assert!(text[last..].starts_with("HTTP/1.1 503 ") && text[last..].contains("connection: close"), "{text}");
}

#[tokio::test]
async fn a_port_that_another_program_has_is_told_until_it_is_free() {
    let (agent, mut ports) = ports();
    let taken = TcpListener::bind("[::]:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let problems = ports.follow(vec![check(port, "web", 1)]).await;
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.object, "Service/shop/web");
    assert!(problem.message.contains(&port.to_string()) && problem.message.contains("kube-proxy"), "{problem:?}");
    tell(&agent, problems.clone());
    assert_eq!(agent.read().health_checks, problems);
    drop(taken);
    let problems = ports.follow(vec![check(port, "web", 1)]).await;
    assert!(problems.is_empty(), "{problems:?}");
    tell(&agent, problems);
    assert!(agent.read().health_checks.is_empty());
    assert!(ask(port).await.contains(r#""localEndpoints":1"#));
}

#[tokio::test]
async fn connections_that_are_kept_open_at_one_port_keep_nobody_from_another() {
    // Few: another test counts the files of this process.
    let bounds = Bounds { connections: 4, request: Duration::from_secs(3600), lifetime: None };
    let mut ports = Ports::new(SharedState::new(crate::testing::agent("n1")), bounds);
    let (web, mail) = (free_port().await, free_port().await);
    assert!(ports.follow(vec![check(web, "web", 1), check(mail, "mail", 1)]).await.is_empty());
    let mut held = Vec::new();
    for _ in 0..2 * bounds.connections {
        held.push(TcpStream::connect((Ipv4Addr::LOCALHOST, web)).await.unwrap());
    }
    assert!(ask(mail).await.contains(r#""name":"mail""#));
}

//! A server that the gate asks by itself, over TLS: an issuer of keys, a page of addresses. What it answers stands in a script.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{
    receiver::{Act, Receiver, Seen},
    tls::Ca,
};

pub(crate) struct Origin {
    /// What was asked of it.
    pub(crate) inner: Receiver,
    address: SocketAddr,
    front: JoinHandle<()>,
    pub(crate) ca: Ca,
}

impl Origin {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let inner = Receiver::acting(script).await;
        let ca = Ca::new("the origin's CA");
        let acceptor = tokio_rustls::TlsAcceptor::from(ca.server(&["localhost"]).serve(&["http/1.1"]));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let to = inner.address();
        let front = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let (Ok(mut outside), Ok(mut inside)) = (acceptor.accept(socket).await, TcpStream::connect(to).await) else { return };
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self { inner, address, front, ca }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Takes no more connections.
    pub(crate) fn stop(&self) {
        self.front.abort();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

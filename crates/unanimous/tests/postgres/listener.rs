//! A connection that listens, and tells in their order all notifications that were committed so far.

use std::future::poll_fn;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use unanimous::postgres::tokio_postgres::{self, AsyncMessage, Client, NoTls};

use crate::support::ended;

/// What it says to itself, to know that nothing was committed before that it has not heard.
const END: &str = "no more until here";

pub(super) struct Listener {
    client: Client,
    heard: UnboundedReceiver<(String, String)>,
}

impl Listener {
    pub(super) async fn new(url: &str, channels: &[&str]) -> Self {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let (tell, heard) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = tell.send((notification.channel().to_owned(), notification.payload().to_owned()));
                }
            }
        });
        for channel in channels.iter().chain([&END]) {
            client.batch_execute(&format!("listen \"{}\"", channel.replace('"', "\"\""))).await.unwrap();
        }
        Self { client, heard }
    }

    /// Channels and payloads since it was last asked. The server hands notifications out in the order of their commits.
    pub(super) async fn heard(&mut self) -> Vec<(String, String)> {
        self.client.execute("select pg_notify($1, '')", &[&END]).await.unwrap();
        let mut all = Vec::new();
        loop {
            let one = ended(self.heard.recv()).await.unwrap();
            if one.0 == END {
                return all;
            }
            all.push(one);
        }
    }
}

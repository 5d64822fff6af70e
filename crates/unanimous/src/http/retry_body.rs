//! [`RequestBody`]: a request's body that was read ahead within a bound, so that it can be given to each attempt.
//!
//! Must not know why a request is repeated, nor when.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;

pin_project! {
    /// The body of a request behind a [`RetryLayer`](super::RetryLayer): all of it with its trailers, where it was read ahead; otherwise what was
    /// read of it, and then the rest of `B` or its error. Nothing of it is lost in either case.
    pub struct RequestBody<B: Body> {
        read: Bytes,
        #[pin]
        rest: Rest<B, B::Error>,
    }
}

pin_project! {
    #[project = RestProjection]
    enum Rest<B, E> {
        End { trailers: Option<HeaderMap> },
        Broken { error: Option<E> },
        Body { #[pin] body: B },
    }
}

/// A body that was read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Whole {
    pub(crate) fn body<B: Body>(&self) -> RequestBody<B> {
        RequestBody { read: self.data.clone(), rest: Rest::End { trailers: self.trailers.clone() } }
    }
}

impl<B: Body<Data = Bytes> + Unpin> RequestBody<B> {
    /// Reads the body ahead.
    ///
    /// # Errors
    ///
    /// The body with nothing lost, where it is longer than `most` bytes or breaks off.
    pub(crate) async fn read(mut body: B, most: usize) -> Result<Whole, Self> {
        if usize::try_from(body.size_hint().lower()).map_or(true, |announced| announced > most) {
            return Err(Self::untouched(body));
        }
        // Copied together: frames by themselves may each hold on to a large buffer of the connection's.
        let mut read = BytesMut::new();
        let trailers = loop {
            match body.frame().await {
                None => break None,
                Some(Err(error)) => {
                    return Err(Self { read: read.freeze(), rest: Rest::Broken { error: Some(error) } });
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        read.extend_from_slice(&data);
                        if read.len() > most {
                            return Err(Self { read: read.freeze(), rest: Rest::Body { body } });
                        }
                    }
                    // There is no third kind of frame yet.
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            break Some(trailers);
                        }
                    }
                },
            }
        };
        Ok(Whole { data: read.freeze(), trailers })
    }
}

impl<B: Body> RequestBody<B> {
    /// A body that nothing was read of.
    pub(crate) fn untouched(body: B) -> Self {
        Self { read: Bytes::new(), rest: Rest::Body { body } }
    }
}

/// A body of these bytes, for layers further in that read the body and put another in its place.
impl<B: Body> From<Bytes> for RequestBody<B> {
    fn from(read: Bytes) -> Self {
        Self { read, rest: Rest::End { trailers: None } }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if !this.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(this.read)))));
        }
        Poll::Ready(match this.rest.project() {
            RestProjection::End { trailers } => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
            RestProjection::Broken { error } => error.take().map(Err),
            RestProjection::Body { body } => ready!(body.poll_frame(cx)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && match &self.rest {
                Rest::End { trailers } => trailers.is_none(),
                Rest::Broken { error } => error.is_none(),
                Rest::Body { body } => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        // As many as fit into memory, and so into 64 bits.
        let read = self.read.len() as u64;
        match &self.rest {
            Rest::End { .. } => SizeHint::with_exact(read),
            Rest::Broken { .. } => {
                let mut hint = SizeHint::new();
                hint.set_lower(read);
                hint
            }
            Rest::Body { body } => {
                let rest = body.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(read));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
                    hint.set_upper(upper);
                }
                hint
            }
        }
    }
}

impl<B: Body> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = match &self.rest {
            Rest::End { .. } => "its end",
            Rest::Broken { .. } => "an error",
            Rest::Body { .. } => "more",
        };
        write!(f, "RequestBody({} bytes, then {rest})", self.read.len())
    }
}

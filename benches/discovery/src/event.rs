//! The bytes of an event: the same for every contender.
//!
//! An event is what a node of a content-addressed event stream stores: a payload block, which names
//! the stream and the parents and carries 256 bytes of body, and an envelope block with the signature,
//! which names the payload. Both are CBOR. On the wire, and in a value that is read back, the two stand
//! in one archive (CAR). An event's id is the address (CID) of its envelope, a stream's that of its
//! first event. Addresses are made up: nobody here checks hashes. That favours whoever reads blocks.

use minicbor::{Decoder, Encoder};

use crate::Failure;

/// Address of an event: version, codec, hash function, length, and 32 bytes of hash.
pub(crate) type Cid = [u8; CID_LEN];
pub(crate) const CID_LEN: usize = 36;

/// Bytes of body in an event.
const BODY_LEN: usize = 256;
/// Bytes of signature and of protected header in an envelope.
const SIGNATURE_LEN: usize = 64;
const PROTECTED_LEN: usize = 128;
/// Codecs of blocks, as multicodec numbers them.
pub(crate) const DAG_CBOR: i64 = 0x71;
pub(crate) const DAG_JOSE: i64 = 0x85;
/// Header of an archive with one root, before the root's address.
const CAR_HEADER: [u8; 12] = *b"\xa2gversion\x01er";

/// A number that looks random, for each `n` another one.
pub(crate) fn mix(n: u64) -> u64 {
    // The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn fill(seed: u64, bytes: &mut [u8]) {
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = mix(seed ^ (index as u64) << 48).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn cid(codec: i64, ordinal: u32, salt: u64) -> Cid {
    let mut cid = [0; CID_LEN];
    cid[..4].copy_from_slice(&[1, codec as u8, 0x12, 0x20]);
    fill(u64::from(ordinal) | salt << 32, &mut cid[4..28]);
    // Behind the random part, so that it says nothing to an index.
    cid[32..].copy_from_slice(&ordinal.to_be_bytes());
    cid
}

/// The id of the event with this ordinal.
pub(crate) fn id(ordinal: u32) -> Cid {
    cid(DAG_JOSE & 0x7f, ordinal, 1)
}

/// The ordinal of the event with this id.
pub(crate) fn ordinal(id: &[u8]) -> Result<u32, Failure> {
    let ordinal = id.last_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let ordinal = ordinal.filter(|ordinal| self::id(*ordinal) == id);
    ordinal.ok_or_else(|| format!("there is no event {id:?}").into())
}

/// A block of an event, as a store of blocks keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) cid: Cid,
    pub(crate) codec: i64,
    pub(crate) root: bool,
    pub(crate) bytes: Vec<u8>,
}

/// What ordering has to know of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: Cid,
    pub(crate) stream: Cid,
    pub(crate) parents: Vec<Cid>,
}

/// The blocks of an event, in the order of its archive.
pub(crate) fn blocks(ordinal: u32, stream: &Cid, parents: &[Cid]) -> [Block; 2] {
    let payload_cid = cid(DAG_CBOR, ordinal, 2);
    let payload = payload(ordinal, stream, parents).expect("a vector takes everything");
    let envelope = envelope(ordinal, &payload_cid).expect("a vector takes everything");
    [
        Block { cid: payload_cid, codec: DAG_CBOR, root: false, bytes: payload },
        Block { cid: id(ordinal), codec: DAG_JOSE, root: true, bytes: envelope },
    ]
}

type Encoded = Result<Vec<u8>, minicbor::encode::Error<std::convert::Infallible>>;

fn payload(ordinal: u32, stream: &Cid, parents: &[Cid]) -> Encoded {
    let mut body = [0; BODY_LEN];
    fill(u64::from(ordinal) | 3 << 32, &mut body);
    let mut out = Encoder::new(Vec::new());
    out.map(3)?.str("id")?.bytes(stream)?.str("data")?.bytes(&body)?;
    out.str("prev")?.array(parents.len() as u64)?;
    for parent in parents {
        out.bytes(parent)?;
    }
    Ok(out.into_writer())
}

fn envelope(ordinal: u32, payload: &Cid) -> Encoded {
    let (mut signature, mut protected) = ([0; SIGNATURE_LEN], [0; PROTECTED_LEN]);
    fill(u64::from(ordinal) | 4 << 32, &mut signature);
    fill(u64::from(ordinal) | 5 << 32, &mut protected);
    let mut out = Encoder::new(Vec::new());
    out.map(2)?.str("payload")?.bytes(payload)?.str("signatures")?.array(1)?;
    out.map(2)?.str("protected")?.bytes(&protected)?.str("signature")?.bytes(&signature)?;
    Ok(out.into_writer())
}

/// The archive of an event, from its blocks: what is read back as the event's value.
pub(crate) fn archive<'a>(
    root: &[u8],
    blocks: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    put_varint(&mut out, CAR_HEADER.len() + root.len());
    out.extend_from_slice(&CAR_HEADER);
    out.extend_from_slice(root);
    for (cid, bytes) in blocks {
        put_varint(&mut out, cid.len() + bytes.len());
        out.extend_from_slice(cid);
        out.extend_from_slice(bytes);
    }
    out
}

/// The archive of the event with this ordinal.
pub(crate) fn archive_of(ordinal: u32, stream: &Cid, parents: &[Cid]) -> Vec<u8> {
    let blocks = blocks(ordinal, stream, parents);
    archive(&id(ordinal), blocks.iter().map(|block| (&block.cid[..], &block.bytes[..])))
}

/// Reads an archive for what ordering has to know: the root's envelope, the payload that it names, and
/// that payload's stream and parents. Nothing is copied but those.
pub(crate) fn parse(archive: &[u8]) -> Result<Header, Failure> {
    let (header, mut rest) = piece(archive)?;
    let id: Cid = *header
        .strip_prefix(&CAR_HEADER)
        .and_then(|root| root.first_chunk())
        .ok_or("an archive begins with its root")?;
    let mut blocks = [(&[][..], &[][..]); 4];
    let mut count = 0;
    while !rest.is_empty() {
        let (block, after) = piece(rest)?;
        let place = blocks.get_mut(count).ok_or("an event has four blocks at most")?;
        *place = block.split_at_checked(CID_LEN).ok_or("a block has an address")?;
        (count, rest) = (count + 1, after);
    }
    let find = |cid: &[u8]| {
        let found = blocks[..count].iter().find(|(address, _)| *address == cid);
        found.map(|(_, bytes)| *bytes).ok_or("a block is missing")
    };
    let (stream, parents) = parse_payload(find(parse_envelope(find(&id)?)?)?)?;
    Ok(Header { id, stream, parents })
}

fn parse_envelope(bytes: &[u8]) -> Result<&[u8], Failure> {
    let mut input = Decoder::new(bytes);
    let mut payload = None;
    for _ in 0..input.map()?.ok_or("a map has a length")? {
        match input.str()? {
            "payload" => payload = Some(input.bytes()?),
            _ => input.skip()?,
        }
    }
    Ok(payload.ok_or("an envelope names its payload")?)
}

fn parse_payload(bytes: &[u8]) -> Result<(Cid, Vec<Cid>), Failure> {
    let mut input = Decoder::new(bytes);
    let (mut stream, mut parents) = (None, Vec::new());
    for _ in 0..input.map()?.ok_or("a map has a length")? {
        match input.str()? {
            "id" => stream = Some(input.bytes()?.try_into()?),
            "prev" => {
                for _ in 0..input.array()?.ok_or("an array has a length")? {
                    parents.push(input.bytes()?.try_into()?);
                }
            }
            _ => input.skip()?,
        }
    }
    Ok((stream.ok_or("a payload names its stream")?, parents))
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The first piece of an archive, and the rest.
fn piece(bytes: &[u8]) -> Result<(&[u8], &[u8]), Failure> {
    let mut len = 0;
    for (index, byte) in bytes.iter().enumerate().take(4) {
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let rest = &bytes[index + 1..];
            return rest.split_at_checked(len).ok_or_else(|| "a piece is cut short".into());
        }
    }
    Err("a length is cut short".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_parsed() {
        for parents in [vec![], vec![id(7)], vec![id(7), id(8)]] {
            let archive = archive_of(9, &id(1), &parents);
            assert_eq!(parse(&archive).unwrap(), Header { id: id(9), stream: id(1), parents });
            assert!((0..archive.len()).all(|len| parse(&archive[..len]).is_err()));
        }
    }

    #[test]
    fn an_id_knows_its_ordinal() {
        assert_eq!(ordinal(&id(0x0123_4567)).unwrap(), 0x0123_4567);
        assert!(ordinal(&[0; CID_LEN]).is_err());
        assert!(ordinal(b"").is_err());
    }

    #[test]
    fn an_event_is_as_long_as_a_real_one() {
        let len = archive_of(9, &id(1), &[id(7)]).len();
        assert!((700..900).contains(&len), "{len}");
    }
}

// Traders of another make: offers made, amended, matched and cancelled at an
// exchange with nothing but a Nostr library, by what EH-04 and EH-05 say.
//
// Usage: node --experimental-websocket offer.mjs trade <relay> <market> <seller's secret> <buyer's secret>
//        node offer.mjs make <market> <secret key, hex> <unix time>
//        node offer.mjs journal <vectors/eh05.json>
// Prints one JSON object.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { finalizeEvent, getPublicKey, verifyEvent } from 'nostr-tools/pure';
import { Relay } from 'nostr-tools/relay';
import { hexToBytes } from 'nostr-tools/utils';

const OFFER = 38480, COMMAND = 8483, ENTRY = 8480, MATCH = 8481, DELETION = 5;
const PATIENCE_MS = 30_000;

const exchangeOf = (market) => market.split(':')[1];
const tag = (event, name) => event.tags.find((tag) => tag[0] === name)?.slice(1);
const tags = (event, name) => event.tags.filter((tag) => tag[0] === name).map((tag) => tag.slice(1));
const now = () => Math.floor(Date.now() / 1000);

function trader(secret, market, clock = now) {
  const key = hexToBytes(secret);
  // Of two offers with one name and one time a relay keeps the lower id.
  let last = 0;
  const sign = (kind, tags) => {
    last = Math.max(last + 1, clock());
    return finalizeEvent({ kind, tags, content: '', created_at: last }, key);
  };
  const offer = (d, terms) =>
    sign(OFFER, [['d', d], ['a', market], ['x', exchangeOf(market)], ...terms]);
  return {
    pubkey: getPublicKey(key),
    offer,
    cancel: (d, prev) => offer(d, [['prev', prev], ['s', 'canceled']]),
    remove: (d) => sign(DELETION, [['a', `${OFFER}:${getPublicKey(key)}:${d}`], ['k', `${OFFER}`]]),
    command: (...cmd) => sign(COMMAND, [['x', exchangeOf(market)], ['cmd', ...cmd]]),
  };
}

const limit = (side, price, qty) =>
  [['side', side], ['price', `${price}`], ['qty', `${qty}`], ['pay', 'nwc']];

// The hash of what both sides are bound to (EH-05), from a match's tags alone.
function terms(match) {
  const one = (name) => tag(match, name)[0];
  const roles = { buy: [0, 1], sell: [1, 0] }[one('side')];
  const inOrder = (values) => roles.map((role) => values[role]);
  const array = [
    'EH-05 terms', one('a'),
    ...inOrder(tags(match, 'e').map(([id]) => id)),
    ...inOrder(tags(match, 'p').map(([key]) => key)),
    one('price'), one('qty'), one('units'), one('msat'), one('sat'),
    ...inOrder(tag(match, 'fee')),
    tags(match, 'pay').map(([way]) => way), one('at'),
  ];
  return createHash('sha256').update(JSON.stringify(array)).digest('hex');
}

function first(relay, filter) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`no ${JSON.stringify(filter)}`)), PATIENCE_MS);
    const subscription = relay.subscribe([filter], {
      onevent(event) {
        clearTimeout(late);
        subscription.close();
        resolve(event);
      },
    });
  });
}

// Publishes an event, and says what the journal has to say about it.
async function ask(relay, exchange, event) {
  await relay.publish(event);
  const entry = await first(relay, { kinds: [ENTRY], authors: [exchange], '#e': [event.id] });
  const inside = JSON.parse(entry.content);
  if (!verifyEvent(inside) || inside.id !== event.id) throw new Error('the entry holds another event');
  return { id: event.id, n: tag(entry, 'n')[0], outcome: tag(entry, 'outcome') };
}

async function trade(url, market, sellerSecret, buyerSecret) {
  const [seller, buyer] = [trader(sellerSecret, market), trader(buyerSecret, market)];
  const exchange = exchangeOf(market);
  const relay = await Relay.connect(url);
  const say = (event) => ask(relay, exchange, event);
  const answers = {};
  const offered = seller.offer('one', limit('sell', 1500, 500));
  answers.offered = await say(offered);
  const amended = seller.offer('one', [...limit('sell', 1480, 400), ['prev', offered.id]]);
  answers.amended = await say(amended);
  answers.stale = await say(seller.offer('one', [...limit('sell', 1, 400), ['prev', offered.id]]));
  const taken = buyer.offer('take', limit('buy', 1500, 150));
  answers.taken = await say(taken);
  const match = await first(relay, { kinds: [MATCH], authors: [exchange], '#e': [taken.id] });
  answers.match = {
    e: tags(match, 'e').map(([id]) => id),
    price: tag(match, 'price')[0],
    qty: tag(match, 'qty')[0],
    sat: tag(match, 'sat')[0],
    terms: tag(match, 'terms')[0],
    reckoned: terms(match),
  };
  answers.cancelled = await say(seller.cancel('one', amended.id));
  answers.again = await say(seller.offer('two', limit('sell', 2000, 10)));
  answers.removed = await say(seller.remove('two'));
  answers.malformed = await say(seller.offer('three', limit('sell', '01', 10)));
  answers.nothing = await say(seller.command('cancel_all'));
  relay.close();
  return answers;
}

function make(market, secret, time) {
  const it = trader(secret, market, () => Number(time));
  const more = [['min', '2'], ['max', '100'], ['tif', 'post'], ['on_epoch', 'keep'],
    ['group', 'desk'], ['stp', 'old'], ['expiration', `${Number(time) + 600}`]];
  const plain = it.offer('js', limit('sell', 1500, 500));
  return {
    about: 'EH-04: events of a trader, made with nostr-tools. The secret key is for tests only.',
    secret,
    plain,
    full: it.offer('js', [...limit('buy', '18446744073709551615', 500), ['prev', plain.id], ...more]),
    market_order: it.offer('js', [['side', 'buy'], ['qty', '4294967295'], ['pay', 'nwc']]),
    cancel: it.cancel('js', plain.id),
    cancel_all: it.command('cancel_all'),
    alive: it.command('alive', `${Number(time) + 60}`),
    off: it.command('alive', 'off'),
  };
}

function journal(path) {
  const { entries, matches, terms: golden, digest, checkpoint } = JSON.parse(readFileSync(path));
  const chained = entries.every((entry, n) =>
    verifyEvent(entry) && tag(entry, 'n')[0] === `${n}`
    && tag(entry, 'prev')[0] === (entries[n - 1]?.id ?? '0'.repeat(64)));
  const state = createHash('sha256').update(hexToBytes(digest.preimage)).digest('hex');
  return {
    entries: entries.length,
    chained,
    terms: matches.every((match) => terms(match) === tag(match, 'terms')[0])
      && golden.sha256 === terms(matches[0]),
    digest: state === tag(checkpoint, 'digest')[0],
  };
}

const [command, ...args] = process.argv.slice(2);
const commands = { trade, make, journal };
console.log(JSON.stringify(await commands[command](...args)));

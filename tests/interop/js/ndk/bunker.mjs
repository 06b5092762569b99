// A remote signer (NIP-46) of another make. Who connects with the secret may
// have everything signed, encrypted and decrypted.
//
// Usage: node --experimental-websocket bunker.mjs <relay> <secret key> <secret>
// Prints its bunker URI once it listens, and how often it was asked for what,
// as one JSON object, when its standard input ends.
import NDK, { NDKNip46Backend, NDKPrivateKeySigner, NDKRelayAuthPolicies } from '@nostr-dev-kit/ndk';

const [relay, key, secret] = process.argv.slice(2);
const say = console.log;
// The library prints to stdout.
console.log = console.info = console.debug = console.error;

const signer = new NDKPrivateKeySigner(key);
const ndk = new NDK({ explicitRelayUrls: [relay], signer, enableOutboxModel: false });
ndk.relayAuthDefaultPolicy = NDKRelayAuthPolicies.signIn({ ndk, signer });
await ndk.connect(5_000);

const allowed = new Set();
const asked = {};

class Bunker extends NDKNip46Backend {
  async applyToken(client, token) {
    if (token !== secret) throw new Error('wrong secret');
    allowed.add(client);
  }
}

const bunker = new Bunker(ndk, signer, async ({ pubkey, method }) => {
  asked[method] = (asked[method] ?? 0) + 1;
  return allowed.has(pubkey);
});
const listening = new Promise((resolve) => {
  const subscribe = ndk.subscribe.bind(ndk);
  ndk.subscribe = (filter, options) => subscribe(filter, { ...options, onEose: resolve });
});
await bunker.start();
await listening;
const { pubkey } = bunker.localUser;
say(`bunker://${pubkey}?relay=${encodeURIComponent(relay)}&secret=${secret}`);

process.stdin.on('end', () => {
  say(JSON.stringify(asked));
  process.exit(0);
});
process.stdin.resume();

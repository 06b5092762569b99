// A Nostr library of another make opens an encrypted key (NIP-49).
//
// Usage: node key.mjs <ncryptsec> <password>
// Prints one JSON object: the public key, hex.
import { decrypt } from 'nostr-tools/nip49';
import { getPublicKey } from 'nostr-tools/pure';

const [encrypted, password] = process.argv.slice(2);
console.log(JSON.stringify({ pubkey: getPublicKey(decrypt(encrypted, password)) }));

import dns, { type LookupAddress } from 'node:dns'
import { syncBuiltinESMExports } from 'node:module'
import net, { type LookupFunction } from 'node:net'

/*
 * A public internet for a server that a test starts: load it with `--import`. The names in PUBLIC_HOSTS have an address
 * there, and connections to it arrive at PUBLIC_PORT of this machine. The server is not changed: it looks the name up,
 * sees a public address, and checks the certificate of whoever answers.
 */

/** An address of the public internet that belongs to none of the services of a test. */
const address = '11.22.33.44'
const hosts = (process.env.PUBLIC_HOSTS ?? '').split(',')
const port = Number(process.env.PUBLIC_PORT)

type Done = (err: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void

const lookup = dns.lookup as unknown as (host: string, options: dns.LookupOptions, done: Done) => void
dns.lookup = ((host: string, options: dns.LookupOptions, done: Done) => {
  if (!hosts.includes(host)) return lookup(host, options, done)
  process.nextTick(done, null, options.all ? [{ address, family: 4 }] : address, 4)
}) as unknown as typeof dns.lookup
syncBuiltinESMExports()

/** Leads connections to the address here, after the caller's own look-up has decided on it. */
const here =
  (own: LookupFunction): LookupFunction =>
  (host, options, done) =>
    own(host, options, (err, found, family) => {
      if (err) return done(err, found, family)
      const route = (each: string) => (each === address ? '127.0.0.1' : each)
      if (typeof found === 'string') done(null, route(found), family)
      else
        done(
          null,
          found.map((each) => ({ ...each, address: route(each.address) }))
        )
    })

const connect = net.Socket.prototype.connect as (this: net.Socket, ...args: unknown[]) => net.Socket
net.Socket.prototype.connect = function (this: net.Socket, ...args: unknown[]) {
  const first = args[0]
  // node:net passes its normalized arguments on as one array
  const options = (Array.isArray(first) ? first[0] : first) as net.TcpNetConnectOpts
  if (options?.host !== undefined && hosts.includes(options.host) && options.lookup) {
    Object.assign(options, { port, lookup: here(options.lookup) })
  }
  return connect.apply(this, args)
} as typeof net.Socket.prototype.connect

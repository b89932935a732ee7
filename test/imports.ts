export type Import = { specifier: string; typesOnly: boolean }

/** The imports of a file, static and dynamic. A computed specifier is reported as an empty string. */
export function importsOf(source: string): Import[] {
  const code = source.replaceAll(/\/\*[\s\S]*?\*\//g, '').replaceAll(/^\s*\/\/.*$/gm, '')
  const statements = code.matchAll(
    /^[ \t]*(?:import|export)\s+(type\s+)?(?:[\w\s{},*$]+?\s*from\s*)?(['"])([^'"]+)\2/gm
  )
  const calls = code.matchAll(
    /(?<![.\w])(?:import\s*\(\s*(?:(['"`])([^'"`$]+)\1\s*[,)])?|require\s*\(\s*(['"`])([^'"`]+)\3)/g
  )
  return [
    ...[...statements].map(([, type, , specifier = '']) => ({ specifier, typesOnly: type !== undefined })),
    ...[...calls].map(([, , imported, , required]) => ({ specifier: imported ?? required ?? '', typesOnly: false }))
  ]
}

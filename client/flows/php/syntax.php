<?php
// Parses each file of a folder and compiles its regular expressions: php syntax.php <folder>. Exit 1 if any can't be read.

$read = 0;
$failed = 0;
$folder = new RecursiveDirectoryIterator($argv[1], FilesystemIterator::SKIP_DOTS);
foreach (new RecursiveIteratorIterator($folder) as $file) {
    if ($file->getExtension() !== 'php') {
        continue;
    }
    $read++;
    try {
        $tokens = token_get_all(file_get_contents($file), TOKEN_PARSE);
    } catch (ParseError $error) {
        $failed++;
        echo "$file: {$error->getMessage()}\n";
        continue;
    }
    foreach ($tokens as $at => $token) {
        // of preg_match("…": the name, the bracket, the text
        $text = $tokens[$at + 2] ?? null;
        if (!is_array($token) || $token[1] !== 'preg_match' || !is_array($text) || $text[0] !== T_CONSTANT_ENCAPSED_STRING) {
            continue;
        }
        if (@preg_match(eval("return $text[1];"), '') === false) {
            $failed++;
            echo "$file: $text[1]: " . error_get_last()['message'] . "\n";
        }
    }
}
exit($read > 0 && $failed === 0 ? 0 : 1);
